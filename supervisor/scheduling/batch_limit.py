"""How many requests of a model are computed together. Pure.

The least of: what is configured, or one for an engine that batches wrong; what an operator or a policy holds it to; half of what ran when memory ran out, for a
while; and what keeps the time between two tokens under the target of the most demanding tier that runs: one fewer after
each stretch of steps that took longer, one more after each that took clearly less (additive both ways: the time of a step
grows with the batch, and nothing is gained by a large jump).
"""

import math
from collections.abc import Iterable, Mapping

from mlxsup.protocol.generation import Priority

_STRETCH_STEPS = 16
_ROOM = 0.8


class BatchLimit:
    """`inter_token_targets_s` for each tier that has one, in seconds."""

    def __init__(self, sequences_max: int, inter_token_targets_s: Mapping[Priority, float]) -> None:
        self._sequences_max = sequences_max
        self._targets_s = inter_token_targets_s
        self._is_alone = False
        self._held: int | None = None
        self._crowd_max = sequences_max
        self._crowded_until_s = -math.inf
        self._paced = sequences_max
        self._steps = 0
        self._seconds = 0.0

    def at(self, now_s: float) -> int:
        bounds = [self._sequences_max, self._paced]
        if self._held is not None:
            bounds.append(self._held)
        if now_s < self._crowded_until_s:
            bounds.append(self._crowd_max)
        return 1 if self._is_alone else max(1, min(bounds))

    def hold(self, sequences_max: int | None) -> None:
        """No more than that until it is None."""
        self._held = sequences_max

    def keep_alone(self, *, alone: bool) -> None:
        """Whether each is computed alone, whatever else is said."""
        self._is_alone = alone

    def crowd(self, sequences_max: int, until_s: float) -> None:
        """More together were too much for the memory."""
        self._crowd_max = min(sequences_max, self._sequences_max)
        self._crowded_until_s = until_s

    def note_step(self, gap_s: float, tiers: Iterable[Priority], running: int) -> None:
        """A step of so many sequences came so long after the last one."""
        if not self._targets_s:
            return
        target_s = min(
            (self._targets_s[tier] for tier in set(tiers) if tier in self._targets_s), default=None
        )
        if target_s is None:
            # Nobody who runs minds.
            self._paced = self._sequences_max
            self._steps, self._seconds = 0, 0.0
            return
        self._steps += 1
        self._seconds += gap_s
        if self._steps < _STRETCH_STEPS:
            return
        mean_s = self._seconds / self._steps
        self._steps, self._seconds = 0, 0.0
        if mean_s > target_s:
            self._paced = max(1, min(self._paced, running) - 1)
        elif mean_s < _ROOM * target_s:
            self._paced = min(self._sequences_max, self._paced + 1)
