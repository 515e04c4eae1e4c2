"""One sequence's way through its grammar.

Rule 1: where only one continuation is allowed its tokens come next, all of them. Rule 2: when the tokens left are no more than
a way to the end needs, and a margin, that way is gone, and nothing else is allowed. Rule 3: behind a complete text comes an end
token, and nothing behind that. All of it follows from the tokens accepted and those left: a sequence that is taken up again
goes on as it would have.
"""

import time
from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.worker.engine.grammar.closing import closing
from mlxsup.worker.engine.grammar.vocabulary import Vocabulary

# A mask takes some 20 us. One that takes so long, so often, holds up everybody.
_SLOW_S = 0.05
_SLOW_MAX = 4


class Bound(msgspec.Struct, frozen=True, eq=False):
    """A compiled grammar: `matcher` at its beginning, `margin_tokens` by which one token may take its end further away."""

    vocabulary: Vocabulary
    matcher: LLMatcher
    margin_tokens: int
    path: str

    def start(self, delivered: Sequence[int]) -> "Walk":
        walk = Walk(self)
        walk.accept(delivered)
        return walk


class Walk:
    def __init__(self, bound: Bound) -> None:
        self._bound = bound
        self._matcher = bound.matcher.deep_copy()
        self._accepted = 0
        # What comes next whatever is sampled.
        self._forced = self._matcher.compute_ff_tokens()
        self._is_over = False
        # With no more tokens left than that, the way to the end is looked at again.
        self._look_at: int | None = None
        self._slow = 0

    def allowed(self, tokens_left: int) -> npt.NDArray[np.uint32] | None:
        """Raises RpcError: LIMIT_EXCEEDED where the grammar is too complex to go on."""
        if not self._is_over:
            self._keep_in_time(tokens_left)
        if self._is_over:
            return self._only(list(self._bound.vocabulary.end_tokens))
        if self._forced:
            return self._only(self._forced[:1])
        began_s = time.monotonic()
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)
        self._check(time.monotonic() - began_s)
        return bits

    def forced(self) -> list[int]:
        return list(self._forced)

    def accept(self, tokens: Sequence[int]) -> None:
        """Raises RpcError: LIMIT_EXCEEDED where the grammar is too complex to go on."""
        for token in tokens:
            self._accept(token)

    def _accept(self, token: int) -> None:
        if self._is_over:
            return
        self._accepted += 1
        if token in self._bound.vocabulary.end_tokens:
            self._is_over = True
            return
        self._matcher.consume_token(token)
        self._check(0.0)
        self._forced = self._forced[1:] if self._forced[:1] == [token] else []
        if not self._forced:
            self._forced = self._matcher.compute_ff_tokens()

    def _keep_in_time(self, tokens_left: int) -> None:
        if self._look_at is not None and tokens_left > self._look_at:
            return
        way = closing(self._matcher, self._accepted, self._bound.vocabulary)
        if way is None:
            raise self._too_complex("no end was found for the answer")
        margin = self._bound.margin_tokens
        if len(way) + margin < tokens_left:
            # Each token takes the end no further away than by the margin.
            self._look_at = tokens_left - max(1, (tokens_left - len(way) - margin) // (margin + 1))
            return
        self._look_at = tokens_left
        if len(way) > tokens_left:
            raise self._too_complex("the answer can't come to its end within its tokens")
        if way:
            self._forced = way
        else:
            self._is_over = True

    def _only(self, tokens: list[int]) -> npt.NDArray[np.uint32]:
        bits = np.zeros(self._bound.vocabulary.tokens.vocab_size // 32 + 1, dtype=np.uint32)
        for token in tokens:
            bits[token // 32] |= np.uint32(1 << token % 32)
        return bits

    def _check(self, mask_s: float) -> None:
        if mask_s > _SLOW_S:
            self._slow += 1
        if self._slow > _SLOW_MAX:
            raise self._too_complex("each of its steps takes too long")
        if self._matcher.is_error():
            raise self._too_complex(self._matcher.get_error().splitlines()[0][:200])

    def _too_complex(self, why: str) -> RpcError:
        path = self._bound.path
        return RpcError(
            ErrorKind.LIMIT_EXCEEDED,
            f"`{path}` is too complex for this answer: {why}; simplify it",
            path=path,
        )
