"""Which worker may read a chunk of prompts next, where several share one GPU. Pure.

Rule 1: nobody has a turn beside another. Rule 2: between two turns every other worker that decodes finishes a step, or
has had `step_wait_s` for it. Rule 3: of those who ask the most urgent goes first, then who asked first; but nobody is
passed more than `passes_max` times. Rule 4: a turn ends when its worker says so, ends, or has had it for `turn_s_max`. It is
a courtesy to others and guards nothing: who loses it may be computing still.
"""

import math
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import msgspec

WorkerT = TypeVar("WorkerT", bound=Hashable)


class LeaseBounds(msgspec.Struct, frozen=True, kw_only=True):
    turn_s_max: float = 10.0
    step_wait_s: float = 1.0
    passes_max: int = 8


class _Ask(msgspec.Struct):
    urgency: int
    passed: int = 0


class Arbiter(Generic[WorkerT]):
    """`grant` is called at once, from within the call that made it possible; it calls nothing back."""

    def __init__(self, bounds: LeaseBounds, grant: Callable[[WorkerT], None]) -> None:
        self._bounds = bounds
        self._grant = grant
        # In the order in which they asked.
        self._asks: dict[WorkerT, _Ask] = {}
        self._holder: WorkerT | None = None
        self._granted_s = -math.inf
        self._released_s = -math.inf
        # Who was seen to decode, and of those who has not finished a step since the last turn began.
        self._decoding: set[WorkerT] = set()
        self._owed: set[WorkerT] = set()

    @property
    def holder(self) -> WorkerT | None:
        return self._holder

    @property
    def next_tick_s(self) -> float:
        """When `on_tick` may change something, if nothing else happens before."""
        if self._holder is not None:
            return self._granted_s + self._bounds.turn_s_max
        return self._released_s + self._bounds.step_wait_s if self._asks and self._owed else math.inf

    def on_ask(self, worker: WorkerT, urgency: int, now_s: float) -> None:
        """It wants a turn. Whoever asks again while it has one has forgotten to end it."""
        if self._holder == worker:
            self._release(now_s)
        self._asks.setdefault(worker, _Ask(urgency)).urgency = urgency
        self._look(now_s)

    def on_done(self, worker: WorkerT, now_s: float) -> None:
        """Its turn is over, or it no longer wants one."""
        self._asks.pop(worker, None)
        if self._holder == worker:
            self._release(now_s)
        self._look(now_s)

    def on_step(self, worker: WorkerT, now_s: float) -> None:
        """It has told tokens of answers."""
        self._decoding.add(worker)
        self._owed.discard(worker)
        self._look(now_s)

    def on_idle(self, worker: WorkerT, now_s: float) -> None:
        """It has nothing to decode any more."""
        self._decoding.discard(worker)
        self._owed.discard(worker)
        self._look(now_s)

    def on_gone(self, worker: WorkerT, now_s: float) -> None:
        self._decoding.discard(worker)
        self._owed.discard(worker)
        self.on_done(worker, now_s)

    def on_tick(self, now_s: float) -> None:
        if self._holder is not None and now_s >= self._granted_s + self._bounds.turn_s_max:
            self._release(now_s)
        self._look(now_s)

    def _release(self, now_s: float) -> None:
        self._holder = None
        self._released_s = now_s

    def _look(self, now_s: float) -> None:
        if self._holder is not None or not self._asks:
            return
        worker = self._first()
        if late := self._owed - {worker}:
            if now_s < self._released_s + self._bounds.step_wait_s:
                return
            # Evidently they do not decode.
            self._decoding -= late
        for other, ask in self._asks.items():
            if other == worker:
                break
            ask.passed += 1
        del self._asks[worker]
        self._holder = worker
        self._granted_s = now_s
        self._owed = self._decoding - {worker}
        self._grant(worker)

    def _first(self) -> WorkerT:
        return min(
            self._asks,
            # Equals stay in the order in which they asked.
            key=lambda worker: (
                -1 if self._asks[worker].passed >= self._bounds.passes_max else self._asks[worker].urgency
            ),
        )
