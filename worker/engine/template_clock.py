"""The clock that chat templates read with `strftime_now`, so that a prompt can be made again as it was."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper
from transformers.utils import chat_template_utils

# None is the present.
_moment: ContextVar[datetime | None] = ContextVar("_moment", default=None)


@contextmanager
def template_clock(
    tokenizer: TokenizerWrapper, unix_s: float | None, tools: list[dict[str, Any]] | None = None
) -> Iterator[None]:
    """Within it the tokenizer's template is rendered at that moment of the wall clock; safe in several threads.

    Some tokenizers have another template for a conversation with `tools`.

    transformers turns every variable that it is given into plain text, also a function. So the function is put where the
    template that it compiles once, and keeps, has its own.
    """
    compile_template: Callable[[str], Any] | None = getattr(
        chat_template_utils, "_compile_jinja_template", None
    )
    # mlx-lm has templates of its own in Python, which know no day.
    if compile_template is not None and getattr(tokenizer, "chat_template", None) is not None:
        compile_template(tokenizer.get_chat_template(tools=tools)).globals["strftime_now"] = _strftime_then
    token = _moment.set(None if unix_s is None else datetime.fromtimestamp(unix_s))
    try:
        yield
    finally:
        _moment.reset(token)


def _strftime_then(format: str) -> str:
    return (_moment.get() or datetime.now()).strftime(format)
