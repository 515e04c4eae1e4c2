"""Text to tokens and back: templates, encoding, and decoding one token at a time."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Protocol

import msgspec
from jinja2 import TemplateError
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers.decoders import DecodeStream

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import ImagePart, Message, PastCall, TextPart
from mlxsup.worker.engine.grammar.vocabulary import Vocabulary
from mlxsup.worker.engine.outputs.dialect import ToolMarkers, read_dialect
from mlxsup.worker.engine.template_clock import template_clock

ShowContent = Callable[[Message], Any]
"""What a chat template is given as the content of a message: text, or parts as it expects them."""


class TokenStream(Protocol):
    """Decodes one sequence; the pieces and the flush together are `TextCodec.decode` of its tokens."""

    def add(self, token: int) -> str:
        """The text that this token made certain: never a part of a character."""
        ...

    def flush(self) -> str:
        """What is left when no more tokens come; bytes that are no character show as U+FFFD."""
        ...


class TextCodec:
    """Safe in several threads: nothing of the tokenizer is ever reconfigured."""

    def __init__(self, tokenizer: TokenizerWrapper) -> None:
        self._tokenizer = tokenizer
        # None for a tokenizer in plain Python, which mlx-lm's own detokenizer then decodes.
        self._backend: Any = getattr(tokenizer._tokenizer, "backend_tokenizer", None)  # noqa: SLF001
        self.eos_tokens = tuple(sorted(tokenizer.eos_token_ids))
        self.dialect = read_dialect(tokenizer)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """As grammars need it."""
        return Vocabulary(self._backend, self.eos_tokens)

    @property
    def tool_markers(self) -> ToolMarkers | None:
        """What its model puts around calls, if it knows any."""
        return None if self.dialect is None else self.dialect.tools

    def has_vocabulary_of(self, other: TokenizerWrapper) -> bool:
        """Whether each token is the same text in both, by the same number."""
        return bool(self._tokenizer.get_vocab() == other.get_vocab())

    def encode(self, text: str, *, special: bool) -> list[int]:
        """`special` adds what the model expects around a text, such as a beginning-of-sequence token."""
        if self._backend is None:
            return list(self._tokenizer.encode(text, add_special_tokens=special))
        # The batch call leaves the interpreter lock alone meanwhile, and computes no offsets.
        return list(self._backend.encode_batch_fast([text], add_special_tokens=special)[0].ids)

    def decode(self, tokens: list[int]) -> str:
        if self._backend is None:
            return str(self._tokenizer.decode(tokens))
        return str(self._backend.decode(tokens, skip_special_tokens=False))

    def stream(self) -> TokenStream:
        return _PlainStream(self._tokenizer) if self._backend is None else _FastStream(self._backend)

    def render_chat(
        self,
        messages: list[Message],
        at_unix_s: float | None = None,
        *,
        tools: Sequence[dict[str, Any]] = (),
        thinks: bool = True,
        show: ShowContent | None = None,
    ) -> str:
        """The prompt that the model's chat template makes of a conversation, at that moment of the wall clock, or now.

        `tools` are shown to the model. Without `thinks` its answer is to begin at once, where the template can say so.
        What messages hold it is given by `show`, None: as text.

        Raises:
            RpcError: UNSUPPORTED for images without `show` or where there is no template, and for tools where none are known or their
                calls can't be told from text; INVALID_PARAMS where the template refuses the conversation, in its own words.
        """
        if not self._tokenizer.has_chat_template:
            raise RpcError(
                ErrorKind.UNSUPPORTED,
                "this model has no chat template: use `generate` with a prompt of your own",
                path="$.messages",
            )
        options: dict[str, Any] = {}
        if tools:
            self._check_tools()
            options["tools"] = list(tools)
        if not thinks:
            options["enable_thinking"] = False
        turns = [_turn(message, index, show) for index, message in enumerate(messages)]
        try:
            with template_clock(self._tokenizer, at_unix_s, options.get("tools")):
                prompt = self._tokenizer.apply_chat_template(
                    turns, tokenize=False, add_generation_prompt=True, **options
                )
                return str(prompt)
        except TemplateError as error:
            raise RpcError(
                ErrorKind.INVALID_PARAMS,
                f"the model's chat template refuses `$.messages`: {error}",
                path="$.messages",
            ) from None
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            if not tools and not any(message.tool_calls for message in messages):
                raise
            raise RpcError(
                ErrorKind.INVALID_PARAMS,
                "the model's chat template can't make a prompt of these tools and calls "
                f"({type(error).__name__}): check the types in `$.tools` and `$.messages`",
                path="$.tools" if tools else "$.messages",
            ) from error

    def _check_tools(self) -> None:
        if self.dialect is None or self.dialect.tools is None:
            reason = "mlx-lm has no parser for what this model says when it calls one"
        elif not _knows_tools(self._tokenizer):
            reason = "this model's chat template doesn't know of any"
        else:
            return
        raise RpcError(ErrorKind.UNSUPPORTED, f"`$.tools`: {reason}", path="$.tools")


def _knows_tools(tokenizer: TokenizerWrapper) -> bool:
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        return any("tools" in text for text in template.values())
    # mlx-lm's own templates, and those of a tokenizer of its own kind, are functions.
    return not isinstance(template, str) or "tools" in template


def _turn(message: Message, index: int, show: ShowContent | None) -> dict[str, Any]:
    turn: dict[str, Any] = {
        # Few templates know the newer name of the same role.
        "role": "system" if message.role == "developer" else message.role,
        "content": _content(message, index) if show is None else show(message),
    }
    if message.name is not None:
        turn["name"] = message.name
    if message.tool_calls is not None:
        turn["tool_calls"] = [
            _call(call, f"$.messages[{index}].tool_calls[{number}]")
            for number, call in enumerate(message.tool_calls)
        ]
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    return turn


def _call(call: PastCall, path: str) -> dict[str, Any]:
    """With its arguments as the object that templates expect: a client has them from a result, where they are text.

    Raises:
        RpcError: INVALID_PARAMS where they are the text of none.
    """
    try:
        arguments = msgspec.json.decode(call.function.arguments or "{}", type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError):
        path += ".function.arguments"
        raise RpcError(
            ErrorKind.INVALID_PARAMS, f"`{path}` is not the text of a JSON object", path=path
        ) from None
    return {
        "id": call.id,
        "type": call.type,
        "function": {"name": call.function.name, "arguments": arguments},
    }


def _content(message: Message, index: int) -> str:
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    texts = []
    for number, part in enumerate(message.content):
        match part:
            case TextPart(text=text):
                texts.append(text)
            case ImagePart():
                path = f"$.messages[{index}].content[{number}]"
                raise RpcError(
                    ErrorKind.UNSUPPORTED, f"this model takes no images, but `{path}` is one", path=path
                )
    return "".join(texts)


class _FastStream:
    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._stream = DecodeStream(skip_special_tokens=False)
        self._tokens: list[int] = []
        self._chars_given = 0

    def add(self, token: int) -> str:
        self._tokens.append(token)
        piece = self._stream.step(self._backend, token) or ""
        self._chars_given += len(piece)
        return piece

    def flush(self) -> str:
        return str(self._backend.decode(self._tokens, skip_special_tokens=False))[self._chars_given :]


class _PlainStream:
    def __init__(self, tokenizer: TokenizerWrapper) -> None:
        self._detokenizer = tokenizer.detokenizer

    def add(self, token: int) -> str:
        self._detokenizer.add_token(token)
        return str(self._detokenizer.last_segment)

    def flush(self) -> str:
        self._detokenizer.finalize()
        return str(self._detokenizer.last_segment)
