"""When requests that wait have to be refused because those before them wait too long: CoDel. Pure.

Rule 1: what counts is how long those that begin had waited, of all tiers but background, which is there to wait.
Rule 2: one that had waited no longer than the target ends it all: a burst is no overload. Rule 3: after a whole interval
in which none had, one is to be refused, the n-th an interval over the square root of n after the one before, until
Rule 2. Rule 4: when it begins again within an interval of when the next would have been refused, it goes on almost where
it was. Rule 5: while nobody of those tiers waits there is no overload.

After Nichols and Jacobson, Controlling Queue Delay (2012), with seconds for milliseconds: a request here is no packet.
"""

import math

from mlxsup.protocol.generation import Priority


class Shedder:
    """All moments are of the monotonic clock."""

    def __init__(self, target_s: float, interval_s: float) -> None:
        self._target_s = target_s
        self._interval_s = interval_s
        self._above_since_s: float | None = None
        self._shedding = False
        self._shed = 0
        self._next_s = -math.inf

    @property
    def next_look_s(self) -> float | None:
        """Before that `due` says no; None: as long as nothing more begins."""
        if self._shedding:
            return self._next_s
        return None if self._above_since_s is None else self._above_since_s + self._interval_s

    def note_start(self, waited_s: float, tier: Priority, now_s: float) -> None:
        """A request begins for the first time."""
        if tier is Priority.BACKGROUND:
            return
        if waited_s <= self._target_s:
            self._rest()
        elif self._above_since_s is None:
            self._above_since_s = now_s

    def note_empty(self) -> None:
        """Nobody waits, or background only."""
        self._rest()

    def due(self, now_s: float) -> bool:
        """Whether one is to be refused now; it counts as refused."""
        look_s = self.next_look_s
        if look_s is None or now_s < look_s:
            return False
        if not self._shedding:
            recently = now_s - self._next_s < self._interval_s
            self._shed = max(0, self._shed - 2) if recently else 0
            self._shedding = True
        self._shed += 1
        self._next_s = now_s + self._interval_s / math.sqrt(self._shed)
        return True

    def _rest(self) -> None:
        self._above_since_s = None
        self._shedding = False
