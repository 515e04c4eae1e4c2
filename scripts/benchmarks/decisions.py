"""What one scheduling decision costs, by how many requests wait: pure objects on a simulated clock, nothing else runs.

However many wait, they come so fast that each waits long enough to age through all tiers, and each client has as many of
them. Three kinds. In the waiting room alone, one comes and one gets its turn. In the whole scheduler, one of a full batch is
answered, so that the next one starts, and one comes. And one comes that is refused, since the predicted wait leaves its
deadline no room.

Steps are lines of Python, which are the same on every machine, and heaps are made of them. The time of each step grows,
too: what a hundred requests take is in the processor's caches, and what a hundred thousand take is not.
"""

import gc
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import msgspec

from mlxsup.config.schema import Model, Scheduling
from mlxsup.protocol.errors import RpcError
from mlxsup.protocol.generation import FinishReason, GenerationResult, Priority
from mlxsup.protocol.worker_link import Delta, Generate, Generated, Order, Sampling, Step
from mlxsup.supervisor.generation.extras import Extras
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.recovery.poison import PoisonWatch
from mlxsup.supervisor.scheduling.flights import Place
from mlxsup.supervisor.scheduling.scheduler import Scheduler
from mlxsup.supervisor.scheduling.waiting_room import RoomBounds, WaitingRoom
from scripts.benchmarks.report import Goal, Section, Table
from scripts.benchmarks.supervisor_child import Say

GOAL_SLOWEST_MS = 1.0
_BATCH = 16
# A look at the clock costs a part of a decision.
_TIMED_TOGETHER = 50
_AGE_STEPS = 5
_CONTEXT_TOKENS = 8192
_MAX_TOKENS = 256
_SHORT_S = 0.001
_STEPS = 60
_STEP_S = 0.02
_DEADLINE_SHARE = 0.1
_TIERS = tuple(Priority)
_GREEDY = Sampling(
    temperature=0.0,
    top_p=1.0,
    top_k=0,
    min_p=0.0,
    repetition_penalty=1.0,
    presence_penalty=0.0,
    frequency_penalty=0.0,
    seed=1,
)

Decide = Callable[[GenerationRequest, float], None]


class DecisionSizes(msgspec.Struct, frozen=True):
    """`decisions`, fifties of them, are timed in each of `rounds`, of every kind among every number of `queued`; so many wait
    of `each_client`.
    """

    queued: tuple[int, ...]
    rounds: int
    decisions: int
    each_client: int


class Cost(msgspec.Struct, frozen=True):
    """Of each decision; the nanoseconds are the median of the rounds."""

    kind: str
    queued: int
    nanoseconds: float
    steps: float


class Growth(msgspec.Struct, frozen=True):
    """`base_ns + doubling_ns * log2(queued)` fits best. The others say by how much the cost among the most grew over that
    among the fewest, over how much the logarithm did.
    """

    kind: str
    base_ns: float
    doubling_ns: float
    ns_over_log: float
    steps_over_log: float


class DecisionFigures(msgspec.Struct, frozen=True):
    sizes: DecisionSizes
    costs: list[Cost]
    growths: list[Growth]


def measure_decisions(sizes: DecisionSizes, seed: int, say: Say) -> Section:
    subjects: list[_Subject] = []
    for queued in sorted(sizes.queued):
        say(f"filling queues with {queued} requests")
        subjects += [_Room(sizes, queued, seed), _Queue(sizes, queued, seed)]
    found: dict[tuple[str, int], list[float]] = {}
    # What waits is garbage to nobody, and looking through it would be timed with whatever comes next.
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        for number in range(1, sizes.rounds + 1):
            for subject in subjects:
                for kind, decide in subject.kinds.items():
                    cost = subject.time(decide)
                    found.setdefault((kind, subject.queued), []).append(cost)
            say(f"round {number} of {sizes.rounds} is done")
    finally:
        gc.enable()
        gc.unfreeze()
    say("counting steps")
    steps = {
        (kind, subject.queued): subject.count(decide)
        for subject in subjects
        for kind, decide in subject.kinds.items()
    }
    costs = [
        Cost(*which, nanoseconds=statistics.median(rounds), steps=steps[which])
        for which, rounds in found.items()
    ]
    figures = DecisionFigures(sizes, costs, growths(costs))
    slowest = max(cost.nanoseconds for cost in costs) / 1e6
    goals = [
        Goal(f"steps: growth over the logarithm's, {growth.kind}", growth.steps_over_log, 1.0, at_least=False)
        for growth in figures.growths
    ]
    goals.append(
        Goal("milliseconds for the slowest kind of decision", slowest, GOAL_SLOWEST_MS, at_least=False)
    )
    return Section("decisions", figures, [_table(figures)], goals)


def growths(costs: Sequence[Cost]) -> list[Growth]:
    """For each kind, among at least two numbers of requests, each above 1."""
    return [
        _growth(kind, sorted((cost for cost in costs if cost.kind == kind), key=lambda cost: cost.queued))
        for kind in dict.fromkeys(cost.kind for cost in costs)
    ]


def _growth(kind: str, costs: list[Cost]) -> Growth:
    doublings = [math.log2(cost.queued) for cost in costs]
    slope, base = statistics.linear_regression(doublings, [cost.nanoseconds for cost in costs])
    first, last = costs[0], costs[-1]
    logarithms = doublings[-1] / doublings[0]
    return Growth(
        kind=kind,
        base_ns=base,
        doubling_ns=slope,
        ns_over_log=last.nanoseconds / first.nanoseconds / logarithms,
        steps_over_log=last.steps / first.steps / logarithms,
    )


@contextmanager
def _counted_lines() -> Iterator[list[int]]:
    """Lines of Python that are run in the block; not those of what calls it."""
    lines = [0]

    def trace(_frame: FrameType, event: str, _argument: object) -> Callable[..., Any]:
        lines[0] += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lines
    finally:
        sys.settrace(before)


class _Nobody:
    """Where requests end here."""

    def delta(self, text: str, extras: Extras | None) -> None: ...

    def result(self, result: GenerationResult) -> None: ...

    def error(self, error: RpcError) -> None: ...

    def request_progressed(self, request: GenerationRequest, now_s: float) -> None: ...

    def request_ended(self, request: GenerationRequest, outcome: str) -> None: ...


class _Subject:
    """So many requests wait, and go on waiting: one comes for each that goes, in steps of a clock of its own."""

    _has_deadlines = False

    def __init__(self, sizes: DecisionSizes, queued: int, seed: int) -> None:
        self.queued = queued
        self.kinds: dict[str, Decide] = {}
        self._sizes = sizes
        self._gap_s = _AGE_STEPS * Scheduling().age_step_s / queued
        self._clients = max(2, queued // sizes.each_client)
        self._chance = random.Random(seed)
        self._nobody = _Nobody()
        self._last_id = 0
        self._now_s = 0.0

    def time(self, decide: Decide) -> float:
        """Nanoseconds for one, of processor time: what else the machine does is no part of it."""
        total_ns = 0
        for _ in range(0, self._sizes.decisions, _TIMED_TOGETHER):
            newcomers = self._newcomers()
            began_ns = time.thread_time_ns()
            for newcomer, now_s in newcomers:
                decide(newcomer, now_s)
            total_ns += time.thread_time_ns() - began_ns
        return total_ns / (-(-self._sizes.decisions // _TIMED_TOGETHER) * _TIMED_TOGETHER)

    def count(self, decide: Decide) -> float:
        """Steps of one."""
        newcomers = self._newcomers()
        with _counted_lines() as lines:
            for newcomer, now_s in newcomers:
                decide(newcomer, now_s)
        return lines[0] / len(newcomers)

    def _newcomers(self) -> list[tuple[GenerationRequest, float]]:
        """With the moments at which they come."""
        self._prepare()
        newcomers = []
        for _ in range(_TIMED_TOGETHER):
            self._now_s += self._gap_s
            newcomers.append((self._newcomer(), self._now_s))
        return newcomers

    def _prepare(self) -> None:
        """What happens now and then, and is neither timed nor counted."""

    def _newcomer(self) -> GenerationRequest:
        self._last_id += 1
        chance = self._chance
        deadline_s = None
        if self._has_deadlines and chance.random() < _DEADLINE_SHARE:
            deadline_s = self._now_s + chance.uniform(1.0, 600.0)
        return GenerationRequest(
            id=self._last_id,
            model="m",
            order=Generate(
                max_tokens=chance.randint(1, _MAX_TOKENS),
                sampling=_GREEDY,
                prompt_tokens=[1] * chance.randint(1, 64),
            ),
            priority=chance.choice(_TIERS),
            client=f"client {chance.randrange(self._clients)}",
            stream=True,
            sink=self._nobody,
            observer=self._nobody,
            now_s=self._now_s,
            deadline_s=deadline_s,
        )


class _Room(_Subject):
    """The waiting room alone."""

    _has_deadlines = True

    def __init__(self, sizes: DecisionSizes, queued: int, seed: int) -> None:
        super().__init__(sizes, queued, seed)
        bound = queued + 1
        defaults = Scheduling()
        self._room = WaitingRoom(
            RoomBounds(requests_max=bound, tier_requests_max=bound, client_requests_max=bound),
            age_step_s=defaults.age_step_s,
            quantum_tokens=defaults.quantum_tokens,
            shortest_first=defaults.shortest_first,
        )
        for _ in range(queued):
            self._now_s += self._gap_s
            self._put(self._newcomer(), self._now_s)
        self.kinds = {"put and pop": self._put_and_pop}

    def _put(self, newcomer: GenerationRequest, now_s: float) -> None:
        self._room.put(newcomer, newcomer.order.max_tokens, now_s)

    def _put_and_pop(self, newcomer: GenerationRequest, now_s: float) -> None:
        self._put(newcomer, now_s)
        self._room.pop(now_s)


class _Port:
    """A worker that does at once what it is told."""

    questions = 0

    def __init__(self) -> None:
        self.running: dict[int, Order] = {}
        self.leaving: list[int] = []

    def start(self, id: int, order: Order) -> None:
        self.running[id] = order

    def cancel(self, id: int, *, goes_on: bool) -> None:  # noqa: ARG002  (who leaves is the same here)
        if self.running.pop(id, None) is not None:
            self.leaving.append(id)


class _Queue(_Subject):
    """The scheduler before a full batch, whose speed is known."""

    def __init__(self, sizes: DecisionSizes, queued: int, seed: int) -> None:
        super().__init__(sizes, queued, seed)
        bound = queued + _BATCH
        model = Model(
            batch_sequences_max=_BATCH,
            queue_requests_max=bound,
            queue_tier_requests_max=bound,
            queue_client_requests_max=bound,
        )
        self._scheduler = Scheduler(
            model, Scheduling(), poison=PoisonWatch(8, 10, 3600.0), on_end=lambda *_: None
        )
        self._port = _Port()
        place = Place(self._port, 1, context_tokens=_CONTEXT_TOKENS, kv_bytes_per_token=1, kv_bytes_max=None)
        self._scheduler.on_ready(place, self._now_s)
        while self._scheduler.queued < queued:
            self._now_s += self._gap_s
            self._come(self._newcomer(), self._now_s)
        self.kinds = {"answer, start and enqueue": self._answer_and_come, "refuse": self._refuse}

    def _prepare(self) -> None:
        """A few steps of the batch, from which its speed is known."""
        for _ in range(_STEPS):
            self._now_s += _STEP_S
            deltas = [Delta(id, "x", [1]) for id in self._port.running]
            self._scheduler.on_step(self._port, Step(deltas), self._now_s)

    def _answer_and_come(self, newcomer: GenerationRequest, now_s: float) -> None:
        self._answer(next(iter(self._port.running)), FinishReason.STOP, now_s)
        self._come(newcomer, now_s)

    def _refuse(self, newcomer: GenerationRequest, now_s: float) -> None:
        newcomer.priority = Priority.BACKGROUND
        newcomer.deadline_s = now_s + _SHORT_S
        try:
            self._scheduler.on_request(newcomer, now_s)
        except RpcError:
            return
        raise RuntimeError("a request was accepted that can't be answered in time")

    def _come(self, newcomer: GenerationRequest, now_s: float) -> None:
        self._scheduler.on_request(newcomer, now_s)
        while self._port.leaving:
            self._answer(self._port.leaving.pop(), FinishReason.CANCELLED, now_s)

    def _answer(self, id: int, finish: FinishReason, now_s: float) -> None:
        self._port.running.pop(id, None)
        answer = Generated(finish_reason=finish, prompt_tokens=32, completion_tokens=16)
        self._scheduler.on_done(self._port, id, answer, now_s)


def _table(figures: DecisionFigures) -> Table:
    sizes = figures.sizes
    queued = sorted(sizes.queued)
    title = f"One decision, by how many wait; about {sizes.each_client} of each client, all tiers"
    rows = []
    for growth in figures.growths:
        costs = [cost for cost in figures.costs if cost.kind == growth.kind]
        costs.sort(key=lambda cost: cost.queued)
        fit = f"{growth.base_ns / 1000:.1f} + {growth.doubling_ns / 1000:.1f} log2(n)"
        steps = [f"{cost.steps:.0f}" for cost in costs]
        times = [f"{cost.nanoseconds / 1000:.1f}" for cost in costs]
        rows.append((f"{growth.kind}: steps", *steps, f"{growth.steps_over_log:.2f}", ""))
        rows.append((f"{growth.kind}: us", *times, f"{growth.ns_over_log:.2f}", fit))
    return Table(title, ("", *(f"{number:,}" for number in queued), "over log", "fit"), rows)
