"""What can be done about an objective that is broken, and who wants it done. Pure but for the levers.

Rule 1: a lever is pulled once however many objectives want it, and let go when the last of them has let go; of several
bounds the least holds. Rule 2: an objective first joins what others have done already, and goes beyond it with its next
step. Rule 3: a tier that suffers is never shed for itself, nor is a more urgent one; nor one that has no requests.
Rule 4: what can't change anything is no step: half a batch of one, a chunk that is as small as may be, another worker
while there is none. Rule 5: a model's worker is recycled at most once a long window.
"""

import math
from typing import Any, Protocol

import msgspec

from mlxsup.config.schema import SloAction
from mlxsup.protocol.generation import Priority

CHUNK_TOKENS_MIN = 16
_TIERS = list(Priority)


class Levers(Protocol):
    """The way to the models."""

    def shed(self, model: str, tier: Priority, on: bool) -> None: ...

    def batch(self, model: str, sequences_max: int | None) -> None: ...

    def chunk(self, model: str, tokens: int | None) -> None: ...

    def recycle(self, model: str) -> None: ...

    def serves(self, model: str) -> bool:
        """Whether it has a worker that is ready."""
        ...

    def tell(self, model: str, what: str, detail: dict[str, Any]) -> None: ...


class Sight(msgspec.Struct, frozen=True):
    """Of one model: the tiers that have requests which have not ended, and how many of these have had their turn."""

    tiers: frozenset[Priority]
    running: int


class Step(msgspec.Struct, frozen=True):
    """`index`: of the action in the objective's list. `tier` is of shed, `bound` of batch and chunk."""

    action: SloAction
    index: int
    tier: Priority | None = None
    bound: int | None = None

    @property
    def undoable(self) -> bool:
        return self.action != "recycle"

    def __str__(self) -> str:
        if self.tier is not None:
            return f"{self.action} {self.tier.value}"
        return self.action if self.bound is None else f"{self.action} {self.bound}"


class Board:
    """What is in force at one model, and for whom; an owner is anything that can be told from others."""

    def __init__(
        self,
        model: str,
        levers: Levers,
        *,
        batch_sequences_max: int,
        prefill_chunk_tokens: int,
        recycle_interval_s: float,
    ) -> None:
        self._model = model
        self._levers = levers
        self._batch_sequences_max = batch_sequences_max
        self._prefill_chunk_tokens = prefill_chunk_tokens
        self._recycle_interval_s = recycle_interval_s
        self._recycled_s = -math.inf
        self._held: list[tuple[object, Step]] = []

    def is_shed(self, tier: Priority) -> bool:
        return any(step.tier is tier for _, step in self._held)

    def next_step(
        self, owner: object, tier: Priority, action: SloAction, index: int, sight: Sight, now_s: float
    ) -> Step | None:
        """What `action` can do now for the `owner`, whose `tier` suffers."""
        match action:
            case "event":
                return Step(action, index)
            case "shed":
                victim = self._victim(owner, tier, sight)
                return None if victim is None else Step(action, index, tier=victim)
            case "batch":
                bound = self._less_batch(owner, sight)
                return None if bound is None else Step(action, index, bound=bound)
            case "chunk":
                bound = self._less_chunk(owner)
                return None if bound is None else Step(action, index, bound=bound)
            case "recycle":
                due = now_s - self._recycled_s >= self._recycle_interval_s
                return Step(action, index) if due and self._levers.serves(self._model) else None

    def take(self, owner: object, step: Step, now_s: float) -> None:
        if step.action == "recycle":
            self._recycled_s = now_s
            self._levers.recycle(self._model)
            return
        self._change([*self._held, (owner, step)])

    def release(self, owner: object, step: Step) -> None:
        """What it has taken, once."""
        if step.undoable:
            held = list(self._held)
            held.remove((owner, step))
            self._change(held)

    def _victim(self, owner: object, tier: Priority, sight: Sight) -> Priority | None:
        for victim in reversed(_TIERS[_TIERS.index(tier) + 1 :]):
            own = any(holder is owner and step.tier is victim for holder, step in self._held)
            if not own and (victim in sight.tiers or self.is_shed(victim)):
                return victim
        return None

    def _less_batch(self, owner: object, sight: Sight) -> int | None:
        own = self._bound("batch", owner) or self._batch_sequences_max
        least = self._bound("batch")
        if least is not None and least < own:
            return least
        now = min(own, sight.running)
        return now // 2 if now >= 2 else None

    def _less_chunk(self, owner: object) -> int | None:
        own = self._bound("chunk", owner) or self._prefill_chunk_tokens
        least = self._bound("chunk")
        if least is not None and least < own:
            return least
        return max(CHUNK_TOKENS_MIN, own // 2) if own > CHUNK_TOKENS_MIN else None

    def _bound(self, action: SloAction, owner: object | None = None) -> int | None:
        """The least, of all or of one owner's."""
        return min(
            (
                step.bound
                for holder, step in self._held
                if step.action == action and step.bound is not None and owner in (None, holder)
            ),
            default=None,
        )

    def _change(self, held: list[tuple[object, Step]]) -> None:
        """Pull exactly the levers that this moves."""
        shed, batch, chunk = self._in_force()
        # What a lever ends is accounted by what is in force from now on.
        self._held = held
        shed_now, batch_now, chunk_now = self._in_force()
        for tier in _TIERS:
            if (tier in shed) != (tier in shed_now):
                self._levers.shed(self._model, tier, tier in shed_now)
        if batch != batch_now:
            self._levers.batch(self._model, batch_now)
        if chunk != chunk_now:
            self._levers.chunk(self._model, chunk_now)

    def _in_force(self) -> tuple[set[Priority], int | None, int | None]:
        shed = {step.tier for _, step in self._held if step.tier is not None}
        return shed, self._bound("batch"), self._bound("chunk")
