"""A scheduler before an engine that computes on a simulated clock: arrivals of any kind, and what became of each."""

import heapq
from collections.abc import Iterable

import msgspec

from mlxsup.config.schema import Model, Scheduling
from mlxsup.protocol.errors import RpcError
from mlxsup.protocol.generation import FinishReason, Priority
from mlxsup.protocol.worker_link import Delta, Generate, Generated, Order, Step
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.recovery.poison import PoisonWatch
from mlxsup.supervisor.scheduling.flights import Place
from mlxsup.supervisor.scheduling.scheduler import Scheduler
from tests.fakes.collecting_sink import CollectingSink
from tests.fakes.requests import GREEDY

_TICK_S = 0.5


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """`answer_tokens` is what the engine gives, at most `max_tokens`."""

    at_s: float
    prompt_tokens: int = 50
    answer_tokens: int = 40
    max_tokens: int = 64
    tier: Priority = Priority.NORMAL
    client: str = "c"
    deadline_s: float | None = None


class Fate(msgspec.Struct):
    """What became of an arrival; moments in seconds."""

    arrival: Arrival
    request: GenerationRequest
    sink: CollectingSink
    refusal: RpcError | None = None
    ended_s: float | None = None

    @property
    def completed(self) -> bool:
        return self.refusal is None and not isinstance(self.sink.outcomes[-1], RpcError)

    @property
    def begun_s(self) -> float | None:
        return self.request.marks.dispatched_s


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """A step takes `step_s`, and more for each sequence and each token of a prompt in it."""

    step_s: float = 0.010
    sequence_s: float = 0.003
    prompt_token_s: float = 0.001


class _Sequence(msgspec.Struct):
    prompt_left: int
    answer_left: int


class Run:
    """Also the port of the one worker."""

    questions = 0

    def __init__(self, model: Model, config: Scheduling | None = None, engine: Engine | None = None) -> None:
        self.engine = engine or Engine()
        self.scheduler = Scheduler(
            model, config or Scheduling(), poison=PoisonWatch(8, 10, 3600.0), on_end=self._note_end
        )
        self.now_s = 0.0
        self.fates: list[Fate] = []
        self.gave_way = 0
        self._by_id: dict[int, Fate] = {}
        self._sequences: dict[int, _Sequence] = {}
        self._leaving: list[int] = []
        self.scheduler.on_ready(
            Place(self, 1, context_tokens=8192, kv_bytes_per_token=0, kv_bytes_max=None), 0.0
        )

    def play(self, arrivals: Iterable[Arrival]) -> list[Fate]:
        """All of them, and until the last has ended."""
        coming = sorted(arrivals, key=lambda arrival: arrival.at_s)
        next_tick_s, index = _TICK_S, 0
        while index < len(coming) or self._sequences or self.scheduler.queued:
            if not self._sequences and index < len(coming):
                self.now_s = max(self.now_s, coming[index].at_s)
            computed = list(self._sequences)
            until_s = self.now_s + self._step_s()
            while index < len(coming) and coming[index].at_s <= until_s:
                self._arrive(coming[index])
                index += 1
            self._expire(until_s)
            self.now_s = max(self.now_s, until_s)
            self._compute(computed)
            if self.now_s >= next_tick_s:
                self.scheduler.on_tick(self.now_s)
                next_tick_s = self.now_s + _TICK_S
        return self.fates

    def _arrive(self, arrival: Arrival) -> None:
        self.now_s = max(self.now_s, arrival.at_s)
        sink = CollectingSink()
        order = Generate(
            max_tokens=arrival.max_tokens, sampling=GREEDY, prompt_tokens=[0] * arrival.prompt_tokens
        )
        request = GenerationRequest(
            id=len(self.fates) + 1,
            model="m",
            order=order,
            priority=arrival.tier,
            client=arrival.client,
            stream=False,
            sink=sink,
            observer=sink,
            now_s=self.now_s,
            deadline_s=None if arrival.deadline_s is None else self.now_s + arrival.deadline_s,
        )
        fate = Fate(arrival, request, sink)
        self.fates.append(fate)
        self._by_id[request.id] = fate
        try:
            self.scheduler.on_request(request, self.now_s)
        except RpcError as error:
            fate.refusal = error

    def _expire(self, until_s: float) -> None:
        due = [
            (fate.request.deadline_s, fate.request.id)
            for fate in self.fates
            if fate.refusal is None and not fate.request.ended and fate.request.deadline_s is not None
        ]
        heapq.heapify(due)
        while due and due[0][0] <= until_s:
            deadline_s, id = heapq.heappop(due)
            self.now_s = max(self.now_s, deadline_s)
            self.scheduler.on_deadline(self._by_id[id].request, self.now_s)

    def _step_s(self) -> float:
        prompts = sum(sequence.prompt_left for sequence in self._sequences.values())
        engine = self.engine
        return engine.step_s + engine.sequence_s * len(self._sequences) + engine.prompt_token_s * prompts

    def _compute(self, ids: list[int]) -> None:
        for id in self._leaving:
            if self._sequences.pop(id, None) is not None:
                self._answer(id, FinishReason.CANCELLED)
        self._leaving.clear()
        deltas, done = [], []
        for id in ids:
            sequence = self._sequences.get(id)
            if sequence is None:
                continue
            sequence.prompt_left = 0
            sequence.answer_left -= 1
            deltas.append(Delta(id, "x", [1]))
            if sequence.answer_left == 0:
                done.append(id)
        self.scheduler.on_step(self, Step(deltas=deltas), self.now_s)
        for id in done:
            if self._sequences.pop(id, None) is not None:
                self._answer(id, FinishReason.STOP)

    def _answer(self, id: int, reason: FinishReason) -> None:
        fate = self._by_id[id]
        answer = Generated(
            finish_reason=reason,
            prompt_tokens=fate.arrival.prompt_tokens,
            completion_tokens=len(fate.request.tokens),
        )
        self.scheduler.on_done(self, id, answer, self.now_s)

    def _note_end(self, request: GenerationRequest, _: RpcError | None) -> None:
        self._by_id[request.id].ended_s = self.now_s

    # As the worker's port.

    def start(self, id: int, order: Order) -> None:
        assert isinstance(order, Generate)
        arrival = self._by_id[id].arrival
        left = arrival.answer_tokens - len(order.delivered_tokens)
        # What gave way keeps its cache.
        prompt = 0 if order.delivered_tokens else arrival.prompt_tokens
        assert id not in self._sequences or id in self._leaving
        if id in self._leaving:
            self._leaving.remove(id)
            del self._sequences[id]
        self._sequences[id] = _Sequence(prompt, left)

    def cancel(self, id: int, *, goes_on: bool) -> None:
        self.gave_way += goes_on
        self._leaving.append(id)
