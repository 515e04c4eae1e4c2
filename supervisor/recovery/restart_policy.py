"""When a worker that died may be started again: backoff with full jitter, within a budget. Pure.

Rule 1: the first restart comes at once. Rule 2: the n-th after it waits a random time up to
`backoff_base_s * 2**(n - 1)`, at most `backoff_max_s` (full jitter: Brooker 2015, "Exponential Backoff and Jitter").
Rule 3: `healthy_s` of being ready makes the next restart the first one again. Rule 4: a death that weighs nothing costs
nothing, unless the worker had not even become ready; one that is excused changes nothing, and waits as the last one.
Rule 5: deaths that weigh more than `restarts_max` within `window_s` put the model into quarantine, until somebody loads
it by hand.
"""

from collections import deque
from collections.abc import Callable

import msgspec


class RestartLimits(msgspec.Struct, frozen=True, kw_only=True):
    backoff_base_s: float
    backoff_max_s: float
    healthy_s: float
    restarts_max: int
    window_s: float


class RestartPolicy:
    """`uniform` gives a random number between two."""

    def __init__(self, limits: RestartLimits, uniform: Callable[[float, float], float]) -> None:
        self._limits = limits
        self._uniform = uniform
        self._deaths: deque[tuple[float, int]] = deque()
        self._failures = 0

    def note_death(
        self, weight: int, now_s: float, ready_s: float | None = None, *, excused: bool = False
    ) -> float | None:
        """Seconds to wait before the next start; None when the budget is spent.

        `ready_s` is when the worker that died became ready, None if it did not. `excused`: what it died of won't come back.
        """
        limits = self._limits
        if ready_s is not None and now_s - ready_s >= limits.healthy_s:
            self._failures = 0
        self._deaths.append((now_s, 0 if excused else weight))
        while self._deaths and now_s - self._deaths[0][0] > limits.window_s:
            self._deaths.popleft()
        if sum(weight for _, weight in self._deaths) > limits.restarts_max:
            return None
        if weight == 0 and ready_s is not None:
            return 0.0
        self._failures += not excused
        return self.delay_s(self._failures)

    def delay_s(self, failures: int) -> float:
        """The wait before the restart that follows so many deaths in a row."""
        if failures <= 1:
            return 0.0
        # Beyond 2**64 the bound has long been reached, and a float would overflow.
        ceiling_s = self._limits.backoff_base_s * 2.0 ** min(failures - 2, 64)
        return self._uniform(0.0, min(self._limits.backoff_max_s, ceiling_s))

    def forgive(self) -> None:
        """Somebody asks for the model by hand: start afresh."""
        self._deaths.clear()
        self._failures = 0
