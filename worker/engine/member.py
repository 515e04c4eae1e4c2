"""One sequence of a batch, from its first unread token to the token that was chosen last."""

from typing import Any

import mlx.core as mx
import msgspec
from mlx_lm.models.cache import TokenBuffer

from mlxsup.worker.engine.sampling import LogitsProcessor, Sampler

Caches = list[Any]
"""One for each layer, of one sequence or of a batch."""


class Member(msgspec.Struct, eq=False, kw_only=True):
    """One sequence. Of `tokens`, its prompt and what it was given since, the first `cached` are in the cache.

    Whoever `reads_first` has its prompt read before answers that are as urgent go on.

    `caches` are its own while it is in no batch. `chosen`, of shape [1], is the token behind `tokens` if that is known
    and not told yet.
    """

    id: int
    urgency: int
    reads_first: bool = False
    tokens: list[int]
    sampler: Sampler
    processors: list[LogitsProcessor]
    cached: int = 0
    caches: Caches
    chosen: mx.array | None = None
    context: TokenBuffer | None = None

    @property
    def unread(self) -> int:
        return len(self.tokens) - self.cached

    @property
    def turn(self) -> int:
        """Lower ones go first, when it is read."""
        return 2 * self.urgency + (not self.reads_first)

    @property
    def answer_turn(self) -> int:
        return 2 * self.urgency + 1


class Choice(msgspec.Struct, frozen=True):
    id: int
    token: int
