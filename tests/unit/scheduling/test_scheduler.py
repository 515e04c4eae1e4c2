"""Each accepted request is in one place until it ends, and only its own worker can say something of it."""

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mlxsup.config.schema import Model, Scheduling
from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import FinishReason, Priority
from mlxsup.protocol.worker_link import Delta, Generate, Generated, Order, Step
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.recovery.poison import PoisonWatch
from mlxsup.supervisor.scheduling.flights import Place, Port
from mlxsup.supervisor.scheduling.scheduler import Scheduler
from tests.fakes.collecting_sink import CollectingSink
from tests.fakes.requests import make_request

DONE = Generated(finish_reason=FinishReason.STOP, prompt_tokens=1, completion_tokens=1)
CANCELLED = Generated(finish_reason=FinishReason.CANCELLED, prompt_tokens=1, completion_tokens=1)
BATCH = 2
QUEUE = 5
TIER = 4
CLIENT = 3
MODEL = Model(batch_sequences_max=BATCH, queue_requests_max=QUEUE)


class FakePort:
    def __init__(self) -> None:
        self.orders: dict[int, Generate] = {}
        self.cancelled: list[int] = []
        self.goes_on = False
        # Told to leave, and to be given again.
        self.leaving: set[int] = set()
        self.questions = 0

    def start(self, id: int, order: Order) -> None:
        assert isinstance(order, Generate)
        assert id not in self.orders
        self.orders[id] = order

    def cancel(self, id: int, *, goes_on: bool) -> None:
        self.cancelled.append(id)
        self.goes_on = goes_on
        if goes_on:
            self.leaving.add(id)


def make_scheduler(
    ends: list[int] | None = None,
    poison: PoisonWatch | None = None,
    config: Scheduling | None = None,
    model: Model = MODEL,
) -> Scheduler:
    return Scheduler(
        model,
        config or Scheduling(),
        poison=poison or PoisonWatch(8, 10, 3600.0),
        on_end=lambda request, _: None if ends is None else ends.append(request.id),
    )


def place_of(port: Port, generation: int) -> Place:
    return Place(port, generation, context_tokens=8192, kv_bytes_per_token=1, kv_bytes_max=None)


def request_of(sink: CollectingSink, prompt: str = "p") -> GenerationRequest:
    return make_request(sink, prompt=prompt, tokens=10, now_s=0.0)


def test_another_worker_can_neither_add_to_a_request_nor_end_it() -> None:
    scheduler, old, new = make_scheduler(), FakePort(), FakePort()
    sink = CollectingSink()
    request = request_of(sink)
    scheduler.on_ready(place_of(new, 2), 0.0)
    scheduler.on_request(request, 0.0)
    scheduler.on_step(old, Step(deltas=[Delta(request.id, "wrong", [1])]), 0.0)
    scheduler.on_done(old, request.id, DONE, 0.0)
    assert (sink.pieces, sink.outcomes) == ([], [])
    scheduler.on_step(new, Step(deltas=[Delta(request.id, "right", [1])]), 0.0)
    scheduler.on_done(new, request.id, DONE, 0.0)

    assert sink.text == "right"


def test_what_is_resumed_is_ordered_from_where_it_was() -> None:
    scheduler, old, new = make_scheduler(), FakePort(), FakePort()
    request = request_of(CollectingSink())
    scheduler.on_ready(place_of(old, 1), 0.0)
    scheduler.on_request(request, 0.0)
    scheduler.on_step(old, Step(deltas=[Delta(request.id, "né", [7, 8]), Delta(999, "nobody", [1])]), 0.0)
    assert scheduler.on_lost(old, 0.0) == [request]
    scheduler.resume([request], 0.0)
    scheduler.on_ready(place_of(new, 2), 0.0)

    assert old.orders[request.id].delivered_tokens == []
    assert new.orders[request.id].delivered_tokens == [7, 8]
    assert new.orders[request.id].delivered_chars == 2
    assert new.orders[request.id].max_tokens == 10


def test_a_paused_worker_keeps_what_it_has_and_gets_nothing_more() -> None:
    scheduler, port = make_scheduler(), FakePort()
    first, second = request_of(CollectingSink()), request_of(CollectingSink())
    scheduler.on_ready(place_of(port, 1), 0.0)
    scheduler.on_request(first, 0.0)
    scheduler.on_pause(port)
    scheduler.on_request(second, 0.0)

    assert list(port.orders) == [first.id]
    assert scheduler.in_flight(port) == [first]
    assert scheduler.queued == 1


def test_a_refusal_of_the_worker_is_the_requests_end() -> None:
    scheduler, port = make_scheduler(), FakePort()
    sink = CollectingSink()
    request = request_of(sink)
    scheduler.on_ready(place_of(port, 1), 0.0)
    scheduler.on_request(request, 0.0)
    scheduler.on_done(port, request.id, RpcError(ErrorKind.LIMIT_EXCEEDED, "too long"), 0.0)

    assert sink.failure.kind is ErrorKind.LIMIT_EXCEEDED


def test_a_suspect_waits_for_an_empty_batch_and_then_nobody_joins_it() -> None:
    poison = PoisonWatch(8, 10, 3600.0)
    scheduler, port = make_scheduler(poison=poison), FakePort()
    runs, suspect, later = (request_of(CollectingSink()) for _ in range(3))
    scheduler.on_ready(place_of(port, 1), 0.0)
    scheduler.on_request(runs, 0.0)
    poison.note_death([suspect], "aborted", 0.0)
    scheduler.on_request(suspect, 0.0)
    scheduler.on_request(later, 0.0)
    assert scheduler.in_flight(port) == [runs]
    scheduler.on_done(port, runs.id, DONE, 0.0)
    assert scheduler.in_flight(port) == [suspect]
    scheduler.on_step(port, Step(deltas=[Delta(suspect.id, "", [1] * 7)]), 0.0)
    assert scheduler.in_flight(port) == [suspect]
    scheduler.on_step(port, Step(deltas=[Delta(suspect.id, "", [1])]), 0.0)

    assert scheduler.in_flight(port) == [suspect, later]


def test_who_runs_gives_way_to_one_that_is_to_be_computed_alone_and_goes_on_behind_it() -> None:
    poison = PoisonWatch(8, 10, 3600.0)
    scheduler, old, port = make_scheduler(poison=poison), FakePort(), FakePort()
    first, second = (request_of(CollectingSink()) for _ in range(2))
    scheduler.on_ready(place_of(old, 1), 0.0)
    for request in (first, second):
        scheduler.on_request(request, 0.0)
    lost = scheduler.on_lost(old, 0.0)
    poison.note_death(lost, "aborted", 0.0)
    scheduler.resume(lost, 0.0)
    scheduler.on_ready(place_of(port, 2), 0.0)
    assert list(port.orders) == [first.id]

    scheduler.on_step(port, Step(deltas=[Delta(first.id, "12345678", [1] * 8)]), 0.0)
    assert (list(port.orders), port.cancelled, port.goes_on) == ([first.id], [first.id], True)
    del port.orders[first.id]
    scheduler.on_done(port, first.id, CANCELLED, 0.0)
    assert list(port.orders) == [second.id]

    scheduler.on_step(port, Step(deltas=[Delta(second.id, "12345678", [1] * 8)]), 0.0)
    assert port.orders[first.id].delivered_tokens == [1] * 8
    assert list(port.orders) == [second.id, first.id]
    assert (first.resumed, first.ended) == (1, False)


def lost_with(scheduler: Scheduler, poison: PoisonWatch, request: GenerationRequest) -> None:
    """It was in flight when a worker died, and goes on."""
    gone = FakePort()
    scheduler.on_ready(place_of(gone, 1), 0.0)
    scheduler.on_request(request, 0.0)
    lost = scheduler.on_lost(gone, 0.0)
    poison.note_death(lost, "aborted", 0.0)
    scheduler.resume(lost, 0.0)


def test_nobody_gives_way_as_long_as_one_can_not_and_nobody_joins_them() -> None:
    poison = PoisonWatch(8, 10, 3600.0)
    scheduler, old, port = make_scheduler(poison=poison), FakePort(), FakePort()
    plain, other, newcomer, suspect = (request_of(CollectingSink(), prompt) for prompt in "abcd")
    plain.resume = False
    lost_with(scheduler, poison, suspect)
    scheduler.on_ready(place_of(old, 2), 0.0)
    (lost,) = scheduler.on_lost(old, 0.0)
    scheduler.on_ready(place_of(port, 3), 0.0)
    for request in (plain, other, newcomer):
        scheduler.on_request(request, 0.0)
    assert list(port.orders) == [plain.id, other.id]

    scheduler.resume([lost], 0.0)
    assert port.cancelled == []
    del port.orders[plain.id]
    scheduler.on_done(port, plain.id, DONE, 0.0)
    assert (list(port.orders), port.cancelled) == ([other.id], [other.id])


def test_who_sends_a_suspicious_request_makes_nobody_give_way() -> None:
    poison = PoisonWatch(8, 10, 3600.0)
    scheduler, port = make_scheduler(poison=poison), FakePort()
    running, suspect = (request_of(CollectingSink(), prompt) for prompt in "ab")
    scheduler.on_ready(place_of(port, 1), 0.0)
    scheduler.on_request(running, 0.0)
    poison.note_death([suspect], "aborted", 0.0)
    scheduler.on_request(suspect, 0.0)

    assert (list(port.orders), port.cancelled) == ([running.id], [])


def test_after_memory_ran_out_fewer_are_computed_together_for_a_while() -> None:
    scheduler, port = make_scheduler(), FakePort()
    scheduler.limit_crowd(1, until_s=600.0)
    scheduler.on_ready(place_of(port, 1), 0.0)
    for _ in range(3):
        scheduler.on_request(request_of(CollectingSink()), 0.0)
    assert len(port.orders) == 1

    scheduler.on_tick(599.0)
    assert len(port.orders) == 1
    scheduler.on_tick(600.0)
    assert len(port.orders) == BATCH


def test_a_question_and_a_request_that_is_to_be_computed_alone_wait_for_each_other() -> None:
    poison = PoisonWatch(8, 10, 3600.0)
    scheduler, port = make_scheduler(poison=poison), FakePort()
    suspect = request_of(CollectingSink())
    told: list[int] = []
    scheduler.on_ready(place_of(port, 1), 0.0)
    port.questions = 1
    poison.note_death([suspect], "aborted", 0.0)
    scheduler.on_request(suspect, 0.0)
    assert (list(port.orders), scheduler.askers.may_ask(0.0)) == ([], False)

    scheduler.askers.wait(lambda: told.append(1), 0.0)
    port.questions = 0
    scheduler.on_tick(0.0)
    assert (list(port.orders), told) == ([suspect.id], [])

    scheduler.on_step(port, Step(deltas=[Delta(suspect.id, "12345678", [1] * 8)]), 0.0)
    assert told == [1]


class Life(RuleBasedStateMachine):
    """Workers come and go, clients cancel and run out of time, tiers are shed, the urgent push in: every request ends once,
    none is forgotten, and no bound is exceeded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[int] = []
        self.poison = PoisonWatch(2, 100, 3600.0)
        config = Scheduling(
            preempt_tokens_min=1, preemptions_soft_max=3, sojourn_target_s=2.0, sojourn_interval_s=3.0
        )
        self.scheduler = make_scheduler(
            self.ends,
            self.poison,
            config,
            msgspec.structs.replace(MODEL, queue_tier_requests_max=TIER, queue_client_requests_max=CLIENT),
        )
        self.ports: list[FakePort] = []
        self.serving: FakePort | None = None
        self.drains = False
        self.sinks: dict[int, CollectingSink] = {}
        self.requests: dict[int, GenerationRequest] = {}
        self.now_s = 0.0

    @rule(
        tier=st.sampled_from(Priority),
        client=st.sampled_from("ab"),
        deadline_s=st.none() | st.floats(0.0, 50.0),
        resume=st.booleans(),
    )
    def submit(self, tier: Priority, client: str, deadline_s: float | None, resume: bool) -> None:
        sink = CollectingSink()
        request = make_request(sink, tokens=10, priority=tier, client=client, now_s=self.now_s)
        request.deadline_s = None if deadline_s is None else self.now_s + deadline_s
        request.resume = resume
        try:
            self.scheduler.on_request(request, self.now_s)
        except RpcError:
            assert not sink.outcomes
            return
        self.sinks[request.id], self.requests[request.id] = sink, request

    @rule(seconds=st.floats(0.0, 40.0))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.scheduler.on_tick(self.now_s)

    @rule(tier=st.sampled_from(Priority), on=st.booleans())
    def shed(self, tier: Priority, on: bool) -> None:
        self.scheduler.shed(tier, 0.0 if on else None, self.now_s)

    @rule(sequences_max=st.none() | st.integers(1, BATCH))
    def limit(self, sequences_max: int | None) -> None:
        self.scheduler.limit_batch(sequences_max, self.now_s)

    @precondition(lambda self: len(self.ports) < 2)
    @rule()
    def gain(self) -> None:
        self.serving = FakePort()
        self.drains = False
        self.ports.append(self.serving)
        self.scheduler.on_ready(place_of(self.serving, 1), self.now_s)

    @precondition(lambda self: self.serving is not None)
    @rule()
    def drain(self) -> None:
        assert self.serving is not None
        self.drains = True
        self.scheduler.on_drain(self.serving)

    @precondition(lambda self: self.ports)
    @rule(data=st.data(), crash=st.booleans(), fail=st.booleans())
    def lose(self, data: st.DataObject, crash: bool, fail: bool) -> None:
        port = self.ports.pop(data.draw(st.integers(0, len(self.ports) - 1)))
        if port is self.serving:
            self.serving = None
        unanswered = self.scheduler.on_lost(port, self.now_s)
        guilty = self.poison.note_death(unanswered, "aborted", self.now_s) if crash else []
        lost = [request for request in unanswered if not request.ended]
        for request in lost:
            if fail or request in guilty or not request.resume:
                self.scheduler.fail(request, RpcError(ErrorKind.WORKER_DIED, "x"), self.now_s)
        self.scheduler.resume([request for request in lost if not request.ended], self.now_s)

    @precondition(lambda self: any(port.orders for port in self.ports))
    @rule(data=st.data(), tokens=st.integers(0, 3), ends=st.booleans())
    def compute(self, data: st.DataObject, tokens: int, ends: bool) -> None:
        port = data.draw(st.sampled_from([port for port in self.ports if port.orders]))
        id = data.draw(st.sampled_from(sorted(port.orders)))
        self.scheduler.on_step(port, Step(deltas=[Delta(id, "x" * tokens, [1] * tokens)]), self.now_s)
        if ends:
            del port.orders[id]
            heard = id in port.cancelled and data.draw(st.booleans())
            port.cancelled = [other for other in port.cancelled if other != id]
            port.leaving.discard(id)
            self.scheduler.on_done(port, id, CANCELLED if heard else DONE, self.now_s)

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), expire=st.booleans())
    def leave(self, data: st.DataObject, expire: bool) -> None:
        request = self.requests[data.draw(st.sampled_from(sorted(self.requests)))]
        (self.scheduler.on_deadline if expire else self.scheduler.on_cancel)(request, self.now_s)

    @invariant()
    def each_is_in_one_place_until_it_ends(self) -> None:
        waiting = [request.id for request in self.scheduler._room]
        flying = [request.id for port in self.ports for request in self.scheduler.in_flight(port)]
        assert len(waiting) == self.scheduler.queued
        assert len(set(waiting + flying)) == len(waiting) + len(flying)
        for id, request in self.requests.items():
            sink = self.sinks[id]
            assert len(sink.outcomes) == len(sink.counted) == self.ends.count(id) == request.ended
            assert request.ended or (id in waiting) != (id in flying)
            assert not (request.ended and id in waiting)

    @invariant()
    def no_more_wait_than_may_but_for_those_who_had_a_turn(self) -> None:
        waiting = [request for request in self.scheduler._room if request.marks.dispatched_s is None]
        assert len(waiting) <= QUEUE
        for tier in Priority:
            assert sum(request.priority is tier for request in waiting) <= TIER
        for client in "ab":
            assert sum(request.client == client for request in waiting) <= CLIENT

    @invariant()
    def no_batch_is_overfull_and_suspects_are_alone(self) -> None:
        for port in self.ports:
            flying = self.scheduler.in_flight(port)
            assert len([request for request in flying if request.id not in port.leaving]) <= BATCH
            assert sorted(request.id for request in flying) == sorted(port.orders)
            if any(self.poison.is_loner(request) for request in flying):
                assert len(flying) == 1

    @invariant()
    def nobody_waits_while_there_is_room(self) -> None:
        if self.serving is not None and not self.drains and not self.scheduler.in_flight(self.serving):
            assert self.scheduler.queued == 0


TestLife = Life.TestCase


@pytest.mark.parametrize("kind", [ErrorKind.WORKER_DIED, ErrorKind.QUARANTINED])
def test_an_error_of_a_death_says_how_far_the_request_had_come(kind: ErrorKind) -> None:
    scheduler, port = make_scheduler(), FakePort()
    sink = CollectingSink()
    request = request_of(sink)
    scheduler.on_ready(place_of(port, 1), 0.0)
    scheduler.on_request(request, 0.0)
    scheduler.on_step(port, Step(deltas=[Delta(request.id, "x", [1, 2, 3])]), 0.0)
    (lost,) = scheduler.on_lost(port, 0.0)
    scheduler.fail(lost, RpcError(kind, "x", retriable=True), 0.0)

    assert (sink.failure.data.tokens_delivered, sink.failure.data.retriable) == (3, True)
