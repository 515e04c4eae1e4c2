"""What an answer has beside its text: reasoning, tool calls, and tokens with their logprobs. Pure."""

import sys
from array import array
from collections.abc import Sequence

import msgspec

from mlxsup.protocol.generation import StreamDelta, ToolCall
from mlxsup.protocol.jsonrpc import Id
from mlxsup.protocol.logprobs import EncodedLogprobs, encode_entries
from mlxsup.protocol.worker_link import Delta

# What a tool call takes besides its texts: measured, and rounded up.
_CALL_BYTES = 512
_TOKEN_BYTES = 8


class Extras(msgspec.Struct, frozen=True):
    """Of one piece of an answer. `tokens` are those that `logprobs` has entries of, as `encode_entries` gives them."""

    reasoning: str = ""
    tool_calls: Sequence[ToolCall] = ()
    tokens: Sequence[int] = ()
    logprobs: bytes = b""

    @property
    def bytes_held(self) -> int:
        """About what it takes, and is in JSON."""
        return (
            len(self.reasoning.encode())
            + sum(map(_call_bytes, self.tool_calls))
            + _TOKEN_BYTES * len(self.tokens)
            + len(self.logprobs)
        )


def extras_of(delta: Delta) -> Extras | None:
    """None for text alone, as most are."""
    if delta.logprobs:
        return Extras(delta.reasoning, delta.tool_calls, delta.tokens, encode_entries(delta.logprobs))
    if delta.reasoning or delta.tool_calls:
        return Extras(delta.reasoning, delta.tool_calls)
    return None


class JoinedExtras:
    """Of all pieces so far. An object for each of them would take many times what they are."""

    __slots__ = ("_logprobs", "_reasoning", "_tokens", "tool_calls")

    def __init__(self) -> None:
        self.tool_calls: list[ToolCall] = []
        self._reasoning = bytearray()
        self._tokens = array("i")
        self._logprobs = bytearray()

    def add(self, extras: Extras) -> None:
        self._reasoning += extras.reasoning.encode()
        self.tool_calls += extras.tool_calls
        self._tokens.extend(extras.tokens)
        if extras.logprobs:
            if self._logprobs:
                self._logprobs += b","
            self._logprobs += extras.logprobs

    @property
    def reasoning(self) -> str:
        return self._reasoning.decode()

    @property
    def logprobs(self) -> EncodedLogprobs:
        return EncodedLogprobs(bytes(self._logprobs))

    def copy(self) -> Extras:
        """All of it as one piece."""
        return Extras(self.reasoning, tuple(self.tool_calls), self._tokens[:], bytes(self._logprobs))


def stream_delta(id: Id, text: str, extras: Extras | None) -> StreamDelta:
    """As it is sent. Pieces of one request have no index but 0: there is one answer."""
    if extras is None:
        return StreamDelta(id=id, index=0, text=text)
    return StreamDelta(
        id=id,
        index=0,
        text=text,
        reasoning=extras.reasoning,
        tool_calls=list(extras.tool_calls),
        tokens=list(extras.tokens),
        logprobs=EncodedLogprobs(extras.logprobs) if extras.logprobs else [],
    )


def _call_bytes(call: ToolCall) -> int:
    function = call.function
    return _CALL_BYTES + sum(map(sys.getsizeof, (call.id, function.name, function.arguments)))
