"""One sequence of a batch, from its first unread token to the token that was chosen last."""

from typing import Any

import mlx.core as mx
import msgspec

from mlxsup.protocol.errors import RpcError
from mlxsup.worker.engine.grammar.constraint import Constraint
from mlxsup.worker.engine.sampling import LogitsProcessor, Sampler
from mlxsup.worker.engine.vision.sight import Sight
from mlxsup.worker.engine.widths import Guesser

Caches = list[Any]
"""One for each layer, of one sequence or of a batch."""


class Chances(msgspec.Struct, frozen=True, eq=False):
    """By the model alone: the logarithm of what was chosen, of shape [1], and the likeliest [top], the first of them first."""

    chosen: mx.array
    top_tokens: mx.array
    top: mx.array


class Member(msgspec.Struct, eq=False, kw_only=True):
    """One sequence. Of `tokens`, its prompt and what it was given since, the first `cached` are in the cache; its answer begins
    behind `prompt_tokens` of them, and may make them `tokens_max`.

    Whoever `reads_first` has its prompt read before answers that are as urgent go on. What begins like another one of the same
    `cache_key` shares what is computed of that, None: with nobody; it `is_lasting` if that is to outlive the worker. Of
    `tokens` the first `taken` were not computed for it.

    `caches` are its own while it is in no batch. `chosen`, of shape [1], is the token behind `tokens` if that is known
    and not told yet, with its `chances` if it is told of `logprobs`: of the token chosen, and so many of the likeliest.

    With a `sight` there are pictures in its prompt. With a `failure` its constraint has no more to say, and it has to be taken out.
    """

    id: int
    urgency: int
    reads_first: bool = False
    tokens: list[int]
    prompt_tokens: int
    tokens_max: int
    sampler: Sampler
    processors: list[LogitsProcessor]
    constraint: Constraint | None = None
    guesser: Guesser | None = None
    logprobs: int | None = None
    adapter: str | None = None
    sight: Sight | None = None
    failure: RpcError | None = None
    cache_key: str | None = None
    is_lasting: bool = False
    taken: int = 0
    cached: int = 0
    caches: Caches
    chosen: mx.array | None = None
    chances: Chances | None = None

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
    """The next token of a sequence; `chances` of one that is told of them."""

    id: int
    token: int
    chances: Chances | None = None
