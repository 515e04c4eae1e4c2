"""What a worker may produce for each request that it has. Pure.

A confused worker that never stops would otherwise fill the supervisor's memory with what nobody asked for.
"""

import msgspec

from mlxsup.protocol.errors import RpcError
from mlxsup.protocol.generation import FinishReason, TokenLogprob, ToolCall
from mlxsup.protocol.worker_link import Embed, Generated, Order, Step

# Far more than the longest token of any vocabulary.
TOKEN_CHARS_MAX = 1024


class _Left(msgspec.Struct):
    """`logprobs` are so many of other tokens for each, None: none at all."""

    tokens: int = 0
    chars: int = 0
    embeddings: int = 0
    logprobs: int | None = None

    @property
    def token_chars(self) -> int:
        """Of what one token is in the answer, and of all that it has among the logprobs."""
        return TOKEN_CHARS_MAX * (1 if self.logprobs is None else 2 + self.logprobs)


class OutputBound:
    """Requests by their ids. `context_tokens` is the worker's own bound, in tokens, once it has one."""

    def __init__(self) -> None:
        self.context_tokens = 0
        self._left: dict[int, _Left] = {}

    def grant(self, id: int, order: Order) -> None:
        if isinstance(order, Embed):
            self._left[id] = _Left(embeddings=len(order.texts))
            return
        delivered = len(order.delivered_tokens)
        self._left[id] = _Left(
            tokens=min(order.max_tokens, self.context_tokens) - delivered,
            chars=TOKEN_CHARS_MAX * delivered - order.delivered_chars - order.delivered_reasoning_chars,
            logprobs=order.logprobs,
        )

    def end(self, id: int) -> None:
        self._left.pop(id, None)

    @property
    def is_empty(self) -> bool:
        """Whether no request is left."""
        return not self._left

    def is_other_than_asked(self, id: int, answer: Generated | RpcError) -> bool:
        """Whether it has other than one embedding for each text, or none where none was asked for."""
        left = self._left.get(id)
        if left is None or isinstance(answer, RpcError):
            return False
        asked = 0 if answer.finish_reason is FinishReason.CANCELLED else left.embeddings
        return len(answer.embeddings) != asked or not all(map(_is_array, answer.embeddings))

    def is_exceeded(self, step: Step) -> bool:
        """Whether it brings a request beyond its tokens, or has more text than they can be, or logprobs of none of them."""
        for delta in step.deltas:
            left = self._left.get(delta.id)
            if left is None:
                continue
            tokens = len(delta.tokens)
            left.tokens -= tokens
            left.chars += left.token_chars * tokens - len(delta.text)
            if delta.reasoning or delta.tool_calls:
                left.chars -= len(delta.reasoning) + sum(map(_call_chars, delta.tool_calls))
            if delta.logprobs:
                if left.logprobs is None or len(delta.logprobs) > tokens:
                    return True
                if any(len(entry.top) > left.logprobs for entry in delta.logprobs):
                    return True
                left.chars -= sum(map(_logprob_chars, delta.logprobs))
            if left.tokens < 0 or left.chars < 0:
                return True
        return False


def _call_chars(call: ToolCall) -> int:
    return 1 + len(call.id) + len(call.function.name) + len(call.function.arguments)


def _logprob_chars(entry: TokenLogprob) -> int:
    return len(entry.text) + sum(len(other.text) for other in entry.top)


def _is_array(text: bytes) -> bool:
    """Of numbers, where it is JSON: it will be told as it is."""
    return bytes(text).translate(None, b"+-.0123456789eE,") == b"[]"
