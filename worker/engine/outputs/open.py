"""Which parts an answer's text has."""

from mlxsup.protocol.worker_link import Generate
from mlxsup.worker.engine.codec import TextCodec
from mlxsup.worker.engine.outputs.calls import CallReader
from mlxsup.worker.engine.outputs.choice import chosen_tools, is_format_bound
from mlxsup.worker.engine.outputs.dialect import Dialect, Part
from mlxsup.worker.engine.outputs.split import SplitStream
from mlxsup.worker.engine.outputs.stream import OutputStream

# At the end of a prompt; no marker takes as many.
_TAIL_TOKENS = 32


def open_output(request: Generate, codec: TextCodec, prompt_tokens: list[int]) -> OutputStream | None:
    """None: it is all text of the answer, as with prompts of the client's own, and where a format says what it is."""
    dialect = codec.dialect
    if dialect is None or request.messages is None or is_format_bound(request):
        return None
    allowed = chosen_tools(request).allowed
    calls = None
    if allowed and dialect.parse is not None:
        calls = CallReader(dialect.parse, allowed, seed=request.sampling.seed, prompt_tokens=prompt_tokens)
    return SplitStream(dialect, calls, _first(dialect, codec, prompt_tokens))


def _first(dialect: Dialect, codec: TextCodec, prompt_tokens: list[int]) -> Part:
    """Some templates begin the reasoning themselves. What a user says of markers further up begins nothing."""
    start = dialect.think_start
    if start is not None and codec.decode(prompt_tokens[-_TAIL_TOKENS:]).rstrip().endswith(start):
        return Part.REASONING
    return dialect.first
