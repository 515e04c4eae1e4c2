"""What a worker may produce for each request that it has. Pure.

A confused worker that never stops would otherwise fill the supervisor's memory with what nobody asked for.
"""

import msgspec

from mlxsup.protocol.worker_link import Generate, Step

# Far more than the longest token of any vocabulary.
TOKEN_CHARS_MAX = 1024


class _Left(msgspec.Struct):
    tokens: int
    chars: int


class OutputBound:
    """Requests by their ids. `context_tokens` is the worker's own bound, in tokens, once it has one."""

    def __init__(self) -> None:
        self.context_tokens = 0
        self._left: dict[int, _Left] = {}

    def grant(self, id: int, order: Generate) -> None:
        delivered = len(order.delivered_tokens)
        self._left[id] = _Left(
            tokens=min(order.max_tokens, self.context_tokens) - delivered,
            chars=TOKEN_CHARS_MAX * delivered - order.delivered_chars,
        )

    def end(self, id: int) -> None:
        self._left.pop(id, None)

    @property
    def is_empty(self) -> bool:
        """Whether no request is left."""
        return not self._left

    def is_exceeded(self, step: Step) -> bool:
        """Whether it brings a request beyond its tokens, or has more text than they can be."""
        for delta in step.deltas:
            left = self._left.get(delta.id)
            if left is None:
                continue
            tokens = len(delta.tokens)
            left.tokens -= tokens
            left.chars += TOKEN_CHARS_MAX * tokens - len(delta.text)
            if left.tokens < 0 or left.chars < 0:
                return True
        return False
