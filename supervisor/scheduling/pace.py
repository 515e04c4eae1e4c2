"""What the steps of the worker that serves teach: the model's speed, and how many it may compute together. Pure."""

import math
from collections.abc import Sequence

from mlxsup.supervisor.scheduling.batch_limit import BatchLimit
from mlxsup.supervisor.scheduling.flights import Flight
from mlxsup.supervisor.scheduling.speed import Speed


class Pace:
    def __init__(self, speed: Speed, limit: BatchLimit) -> None:
        self._speed = speed
        self._limit = limit
        self._last_step_s = -math.inf

    def note_step(
        self, prompt_tokens: int, answer_tokens: int, running: Sequence[Flight], now_s: float, *, loaded: bool
    ) -> None:
        """A step of those that run has come, as for `Speed.note_step`."""
        self._speed.note_step(prompt_tokens, answer_tokens, now_s, loaded=loaded)
        gap_s, self._last_step_s = now_s - self._last_step_s, now_s
        if gap_s < math.inf:
            self._limit.note_step(gap_s, (flight.request.priority for flight in running), len(running))

    def note_embedded(self, prompt_tokens: int, now_s: float, *, loaded: bool) -> None:
        """As `Speed.note_embedded`."""
        self._speed.note_embedded(prompt_tokens, now_s, loaded=loaded)

    def rest(self) -> None:
        """Nothing is computed: the time until the next step says nothing."""
        self._speed.rest()
        self._last_step_s = -math.inf
