"""A circuit breaker that counts only faults of the worker. Pure.

Rule 1: everything that changes the state is in this file, and takes the time as an argument: there is no timer.
Rule 2: CLOSED counts; `consecutive_max` faults in a row, or half of the last `sample` ends (at least `sample_min`),
open it; with a `window_s` it is `faults_max` faults within that time, however many good ends lie between. Rule 3: OPEN refuses until its time is up, each time twice as long, then it is HALF_OPEN.
Rule 4: HALF_OPEN lets one probe through at a time; `successes` of them close it, one fault opens it again.
Rule 5: each change of state begins a new generation; what was let through before it no longer counts.
Rule 6: by hand it is FORCED_OPEN, which refuses all, or DISABLED, which counts nothing.

After Sony's gobreaker (generations, a state decided from the clock) and resilience4j (the names of Rule 6).
"""

from collections import deque
from enum import StrEnum

import msgspec


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    FORCED_OPEN = "forced_open"
    DISABLED = "disabled"


class BreakerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """`open_s` doubles with each opening in a row, up to `open_max_s`. `faults_max` counts where there is a `window_s`."""

    window_s: float | None = None
    faults_max: int = 3
    consecutive_max: int = 3
    sample: int = 20
    sample_min: int = 5
    fault_share: float = 0.5
    open_s: float = 10.0
    open_max_s: float = 300.0
    successes: int = 2


class Admission(msgspec.Struct, frozen=True):
    """What `admit` gave: hand it back to `settle` with how it went. Others wait for a `probe` to be settled."""

    generation: int
    probe: bool = False


class Refusal(msgspec.Struct, frozen=True):
    """Not admitted; None where only a person can change that."""

    retry_after_s: float | None


class CircuitBreaker:
    def __init__(self, limits: BreakerLimits) -> None:
        self._limits = limits
        self._state = BreakerState.CLOSED
        self._generation = 0
        self._recent: deque[bool] = deque(maxlen=limits.sample)
        self._consecutive = 0
        # When the faults within the window were.
        self._faults_s: deque[float] = deque()
        self._opened_s = 0.0
        self._openings = 0
        self._open_for_s = 0.0
        self._probing = False
        self._successes = 0

    def state(self, now_s: float) -> BreakerState:
        if self._state is BreakerState.OPEN and now_s - self._opened_s >= self._open_for_s:
            self._enter(BreakerState.HALF_OPEN)
        return self._state

    def refusal(self, now_s: float) -> Refusal | None:
        """Whether it is open, for those who are no probe."""
        match self.state(now_s):
            case BreakerState.OPEN:
                return Refusal(self._opened_s + self._open_for_s - now_s)
            case BreakerState.FORCED_OPEN:
                return Refusal(None)
        return None

    def admit(self, now_s: float) -> Admission | Refusal:
        if (refusal := self.refusal(now_s)) is not None:
            return refusal
        if self._state is BreakerState.HALF_OPEN:
            if self._probing:
                return Refusal(self._limits.open_s)
            self._probing = True
        return Admission(self._generation, self._probing)

    def settle(self, admission: Admission, *, fault: bool | None, now_s: float) -> None:
        """How an admitted one went; None for an end that says nothing, such as a cancel."""
        state = self.state(now_s)
        if admission.generation != self._generation or state is BreakerState.DISABLED:
            return
        if state is BreakerState.HALF_OPEN:
            self._settle_probe(fault, now_s)
        elif state is BreakerState.CLOSED and fault is not None:
            self._count(fault, now_s)

    def note_fault(self, now_s: float) -> None:
        """A fault that belongs to no admitted one, such as a death that clients do not see."""
        self.settle(Admission(self._generation), fault=True, now_s=now_s)

    def open_for(self, duration_s: float, now_s: float) -> None:
        """For what is known otherwise than by counting."""
        self._opened_s = now_s
        self._open_for_s = duration_s
        self._enter(BreakerState.OPEN)

    def force_open(self) -> None:
        self._enter(BreakerState.FORCED_OPEN)

    def disable(self) -> None:
        self._enter(BreakerState.DISABLED)

    def forgive(self) -> None:
        """What it has counted is void; what was set by hand stays."""
        if self._state not in (BreakerState.FORCED_OPEN, BreakerState.DISABLED):
            self.reset()

    def reset(self) -> None:
        """Closed, as new."""
        self._openings = 0
        self._enter(BreakerState.CLOSED)

    def _settle_probe(self, fault: bool | None, now_s: float) -> None:
        self._probing = False
        if fault is None:
            return
        if fault:
            self._open(now_s)
            return
        self._successes += 1
        if self._successes >= self._limits.successes:
            self.reset()

    def _count(self, fault: bool, now_s: float) -> None:
        if self._limits.window_s is not None:
            self._count_within(self._limits.window_s, fault, now_s)
            return
        self._recent.append(fault)
        self._consecutive = self._consecutive + 1 if fault else 0
        faults = sum(self._recent)
        limits = self._limits
        too_many = len(self._recent) >= limits.sample_min and faults >= limits.fault_share * len(self._recent)
        if fault and (self._consecutive >= limits.consecutive_max or too_many):
            self._open(now_s)

    def _count_within(self, window_s: float, fault: bool, now_s: float) -> None:
        if not fault:
            return
        self._faults_s.append(now_s)
        while now_s - self._faults_s[0] > window_s:
            self._faults_s.popleft()
        if len(self._faults_s) >= self._limits.faults_max:
            self._open(now_s)

    def _open(self, now_s: float) -> None:
        limits = self._limits
        self._openings += 1
        self.open_for(min(limits.open_max_s, limits.open_s * 2.0 ** min(self._openings - 1, 64)), now_s)

    def _enter(self, state: BreakerState) -> None:
        self._state = state
        self._generation += 1
        self._recent.clear()
        self._faults_s.clear()
        self._consecutive = 0
        self._successes = 0
        self._probing = False
