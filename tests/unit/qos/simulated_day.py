"""A day of requests to one model that is well, with what a day has of noise: for a watch that is to stay calm.

Everything is random, of a seed: arrivals with a day's swing down to one request in a few minutes, times to the first token
with a long tail, paces, lengths, a few cancels and errors, pauses of several seconds as when a worker is restarted, and
bursts.
"""

import math
import random
from collections.abc import Iterator

import msgspec
import trio

from mlxsup.protocol.errors import ErrorKind
from mlxsup.protocol.generation import FinishReason, Priority
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.qos.watch import SloWatch
from tests.fakes.collecting_sink import CollectingSink
from tests.fakes.requests import make_request

HOUR_S = 3600.0
_LEAST_PER_S, _MOST_PER_S = 0.004, 0.25
_BURST_SHARE, _BURST_REQUESTS = 0.002, 12
_TTFT_MEDIAN_S, _TTFT_SIGMA = 0.3, 0.6
_SLOW_SHARE, _SLOW_S = 0.015, (2.0, 8.0)
_GAP_S = (0.02, 0.08)
_TOKENS = (5, 120)
_CANCELLED_SHARE, _DIED_SHARE, _OVERLOADED_SHARE = 0.05, 0.001, 0.001
_PAUSES_A_DAY, _PAUSE_S = 8, (3.0, 15.0)


class Trouble(msgspec.Struct, frozen=True):
    """Between these moments everything takes so many times as long."""

    from_s: float
    to_s: float
    times: float


class _Planned(msgspec.Struct):
    request: GenerationRequest
    token_times_s: list[float]
    ends_s: float
    outcome: str
    given: int = 0


class Day:
    """Its moments are from its beginning, on the mock clock."""

    def __init__(self, seed: int, trouble: Trouble | None = None) -> None:
        self._chance = random.Random(seed)
        self._trouble = trouble
        self.requests = 0
        self.bad = 0

    async def run(self, watch: SloWatch, hours: float, interval_s: float) -> None:
        """The watch looks a moment after each of its steps."""
        began_s = trio.current_time()
        ends_s = began_s + hours * HOUR_S
        pauses = self._pauses(began_s, hours)
        arrivals_s = self._arrivals(began_s)
        running: list[_Planned] = []
        arrives_s = next(arrivals_s)
        while trio.current_time() < ends_s:
            now_s = trio.current_time()
            while arrives_s <= now_s:
                running.append(self._plan(arrives_s, began_s, pauses))
                watch.request_began(running[-1].request)
                arrives_s = next(arrivals_s)
            for planned in running:
                _give(planned, now_s)
            for planned in sorted(running, key=lambda planned: planned.ends_s):
                if planned.ends_s <= now_s:
                    running.remove(planned)
                    watch.request_ended(planned.request, planned.outcome, planned.ends_s)
            watch.look(now_s)
            await trio.sleep(interval_s)

    def _arrivals(self, began_s: float) -> Iterator[float]:
        at_s = began_s
        while True:
            share = (1 - math.cos(2 * math.pi * (at_s - began_s) / (24 * HOUR_S))) / 2
            rate = _LEAST_PER_S + (_MOST_PER_S - _LEAST_PER_S) * share
            at_s += self._chance.expovariate(rate)
            burst = self._chance.random() < _BURST_SHARE
            for number in range(_BURST_REQUESTS if burst else 1):
                yield at_s + number * 1e-3

    def _pauses(self, began_s: float, hours: float) -> list[tuple[float, float]]:
        chance = self._chance
        starts = sorted(
            began_s + chance.uniform(0, hours * HOUR_S) for _ in range(round(_PAUSES_A_DAY * hours / 24))
        )
        return [(at_s, at_s + chance.uniform(*_PAUSE_S)) for at_s in starts]

    def _plan(self, arrives_s: float, began_s: float, pauses: list[tuple[float, float]]) -> _Planned:
        chance = self._chance
        trouble = self._trouble
        slow = trouble is not None and trouble.from_s <= arrives_s - began_s < trouble.to_s
        times = trouble.times if slow and trouble is not None else 1.0
        request = make_request(CollectingSink(), priority=Priority.INTERACTIVE, now_s=arrives_s)
        ttft_s = chance.lognormvariate(math.log(_TTFT_MEDIAN_S), _TTFT_SIGMA)
        if chance.random() < _SLOW_SHARE:
            ttft_s = chance.uniform(*_SLOW_S)
        gap_s = chance.uniform(*_GAP_S) * times
        request.marks.dispatched_s = arrives_s + ttft_s * times / 2
        first_s = arrives_s + ttft_s * times
        moments = [first_s + number * gap_s for number in range(chance.randint(*_TOKENS))]
        for start_s, end_s in pauses:
            if start_s < moments[-1] and end_s > arrives_s:
                lost_s = end_s - max(start_s, arrives_s)
                moments = [at_s + lost_s if at_s >= start_s else at_s for at_s in moments]
        outcome, kept = self._outcome(len(moments))
        moments = moments[:kept]
        self.requests += 1
        self.bad += outcome in (ErrorKind.WORKER_DIED, ErrorKind.OVERLOADED)
        return _Planned(request, moments, moments[-1] if moments else arrives_s, outcome)

    def _outcome(self, tokens: int) -> tuple[str, int]:
        """How it ends, and after how many tokens."""
        drawn = self._chance.random()
        if (drawn := drawn - _CANCELLED_SHARE) < 0:
            return FinishReason.CANCELLED.value, self._chance.randint(0, tokens)
        if (drawn := drawn - _DIED_SHARE) < 0:
            return ErrorKind.WORKER_DIED.value, self._chance.randint(0, tokens)
        if drawn < _OVERLOADED_SHARE:
            return ErrorKind.OVERLOADED.value, 0
        return FinishReason.STOP.value, tokens


def _give(planned: _Planned, now_s: float) -> None:
    """Every token that is due."""
    moments = planned.token_times_s
    while planned.given < len(moments) and moments[planned.given] <= now_s:
        planned.request.deliver("", [1], moments[planned.given])
        planned.given += 1
