"""Who gives way to an interactive request, and what becomes of both."""

import pytest

from mlxsup.config.schema import Model, Scheduling
from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import FinishReason, Priority
from mlxsup.protocol.worker_link import Delta, Generate, Generated, Order, Step
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.recovery.poison import PoisonWatch
from mlxsup.supervisor.scheduling.flights import Place
from mlxsup.supervisor.scheduling.scheduler import Scheduler
from tests.fakes.collecting_sink import CollectingSink
from tests.fakes.requests import make_request

BATCH = 2
DONE = Generated(finish_reason=FinishReason.STOP, prompt_tokens=1, completion_tokens=1)
CANCELLED = Generated(finish_reason=FinishReason.CANCELLED, prompt_tokens=1, completion_tokens=1)


class Worker:
    """A port that keeps what it is told, in order: an order as the request's id, a cancel as the negative."""

    questions = 0

    def __init__(self) -> None:
        self.told: list[int] = []
        self.orders: dict[int, Generate] = {}
        self.going_on: list[int] = []

    def start(self, id: int, order: Order) -> None:
        assert isinstance(order, Generate)
        self.told.append(id)
        self.orders[id] = order

    def cancel(self, id: int, *, goes_on: bool) -> None:
        self.told.append(-id)
        if goes_on:
            self.going_on.append(id)


class Stage:
    def __init__(
        self, config: Scheduling | None = None, kv_bytes_max: int | None = None, **model: int
    ) -> None:
        self.worker = Worker()
        self.poison = PoisonWatch(8, 10, 3600.0)
        self.scheduler = Scheduler(
            Model(**({"batch_sequences_max": BATCH} | model)),  # type: ignore[arg-type]
            config or Scheduling(),
            poison=self.poison,
            on_end=lambda *_: None,
        )
        place = Place(self.worker, 1, context_tokens=1000, kv_bytes_per_token=1, kv_bytes_max=kv_bytes_max)
        self.scheduler.on_ready(place, 0.0)

    def ask(
        self, tier: Priority, tokens: int = 100, now_s: float = 0.0, client: str = "c"
    ) -> GenerationRequest:
        request = make_request(CollectingSink(), priority=tier, tokens=tokens, client=client, now_s=now_s)
        self.scheduler.on_request(request, now_s)
        return request

    def step(self, request: GenerationRequest, tokens: int) -> None:
        self.scheduler.on_step(self.worker, Step(deltas=[Delta(request.id, "x" * tokens, [1] * tokens)]), 0.0)

    def answer(self, request: GenerationRequest, answer: Generated | RpcError) -> None:
        self.scheduler.on_done(self.worker, request.id, answer, 0.0)

    def running(self) -> list[int]:
        return [request.id for request in self.scheduler.in_flight(self.worker)]


def test_an_interactive_request_takes_the_place_of_the_last_of_the_least_urgent_at_once() -> None:
    stage = Stage(batch_sequences_max=3)
    old, last, normal = (
        stage.ask(tier) for tier in (Priority.BACKGROUND, Priority.BACKGROUND, Priority.NORMAL)
    )
    for request in (old, last, normal):
        stage.step(request, 8)
    urgent = stage.ask(Priority.INTERACTIVE)

    assert stage.worker.told[-2:] == [-last.id, urgent.id]
    assert stage.worker.going_on == [last.id]
    assert stage.worker.orders[urgent.id].urgency == 0


def test_the_prompt_of_a_client_with_two_places_less_than_another_is_read_first() -> None:
    stage = Stage(batch_sequences_max=4)
    requests = [stage.ask(Priority.NORMAL, client=client) for client in ("big", "big", "small", "small")]

    assert [stage.worker.orders[request.id].reads_first for request in requests] == [
        False,
        False,
        True,
        False,
    ]


def test_who_gave_way_goes_on_from_what_it_had_before_those_who_came_later() -> None:
    stage = Stage(batch_sequences_max=1)
    first = stage.ask(Priority.BACKGROUND)
    later = stage.ask(Priority.BACKGROUND, now_s=1.0)
    stage.step(first, 9)
    urgent = stage.ask(Priority.INTERACTIVE, now_s=2.0)
    stage.answer(first, CANCELLED)
    assert stage.running() == [urgent.id]
    stage.answer(urgent, DONE)

    assert stage.running() == [first.id]
    assert stage.worker.orders[first.id].delivered_tokens == [1] * 9
    assert (first.ended, first.resumed, later.ended) == (False, 0, False)


def test_nobody_gives_way_to_one_that_would_not_fit_even_then() -> None:
    stage = Stage(kv_bytes_max=400, batch_sequences_max=4)
    stage.step(stage.ask(Priority.INTERACTIVE, tokens=250), 8)
    small = stage.ask(Priority.BACKGROUND, tokens=100)
    stage.step(small, 8)
    stage.ask(Priority.INTERACTIVE, tokens=200)

    assert (stage.worker.going_on, small.preempted) == ([], 0)


def test_who_waits_for_a_place_takes_it_with_the_token_that_lets_another_one_give_way() -> None:
    stage = Stage(Scheduling(preempt_tokens_min=8), batch_sequences_max=1)
    request = stage.ask(Priority.BACKGROUND)
    stage.step(request, 7)
    urgent = stage.ask(Priority.INTERACTIVE)
    stage.step(request, 1)

    assert stage.worker.told == [request.id, -request.id, urgent.id]


def test_a_refused_request_that_is_known_for_a_death_keeps_nobody_from_taking_a_place() -> None:
    stage = Stage(batch_sequences_max=1, queue_client_requests_max=1)
    dead = [make_request(CollectingSink(), tokens=tokens, now_s=0.0) for tokens in (50, 51)]
    stage.poison.note_death(dead, "aborted", 0.0)
    for request in dead:
        stage.poison.forget(request)
    stage.step(stage.ask(Priority.BACKGROUND), 8)
    stage.ask(Priority.BACKGROUND)
    with pytest.raises(RpcError, match="as it may have"):
        stage.ask(Priority.INTERACTIVE, tokens=50)
    urgent = stage.ask(Priority.INTERACTIVE, client="d")

    assert urgent.id in stage.worker.told


def test_who_gave_way_often_gets_twice_as_many_tokens_before_each_time() -> None:
    stage = Stage(Scheduling(preemptions_soft_max=1, preempt_tokens_min=8), batch_sequences_max=1)
    request = stage.ask(Priority.BACKGROUND)
    stage.step(request, 7)
    stage.ask(Priority.INTERACTIVE)
    assert stage.running() == [request.id]

    stage.step(request, 1)
    urgent = stage.ask(Priority.INTERACTIVE)
    assert -request.id in stage.worker.told
    stage.answer(request, CANCELLED)
    for _ in range(2):
        stage.answer(next(r for r in stage.scheduler.in_flight(stage.worker)), DONE)
    assert (stage.running(), urgent.ended) == ([request.id], True)
    stage.step(request, 15)
    stage.ask(Priority.INTERACTIVE)
    assert stage.running() == [request.id]
    assert stage.worker.told.count(-request.id) == 1
    stage.step(request, 1)
    assert stage.worker.told.count(-request.id) == 2


def test_only_interactive_requests_make_others_give_way_and_not_each_other() -> None:
    stage = Stage()
    running = [stage.ask(Priority.INTERACTIVE), stage.ask(Priority.BACKGROUND)]
    for request in running:
        stage.step(request, 20)
    stage.ask(Priority.HIGH)
    assert stage.worker.going_on == []
    stage.ask(Priority.INTERACTIVE)
    assert stage.worker.going_on == [running[1].id]
    stage.ask(Priority.INTERACTIVE)
    assert stage.worker.going_on == [running[1].id]


def test_nobody_gives_way_where_preemption_is_off_or_it_wants_no_resume() -> None:
    off = Stage(Scheduling(preempt=False), batch_sequences_max=1)
    off.step(off.ask(Priority.BACKGROUND), 20)
    off.ask(Priority.INTERACTIVE)
    assert off.worker.going_on == []

    stage = Stage(batch_sequences_max=1)
    request = make_request(CollectingSink(), priority=Priority.BACKGROUND, tokens=100, now_s=0.0)
    request.resume = False
    stage.scheduler.on_request(request, 0.0)
    stage.step(request, 20)
    stage.ask(Priority.INTERACTIVE)
    assert stage.worker.going_on == []


def test_who_ends_while_it_gives_way_has_ended_and_does_not_go_on() -> None:
    stage = Stage(batch_sequences_max=1)
    request = stage.ask(Priority.BACKGROUND)
    stage.step(request, 20)
    urgent = stage.ask(Priority.INTERACTIVE)
    stage.answer(request, DONE)

    assert request.ended
    assert (stage.running(), stage.scheduler.queued) == ([urgent.id], 0)


def test_a_worker_forgets_what_it_kept_for_one_that_is_cancelled_while_it_waits_again() -> None:
    stage = Stage(batch_sequences_max=1)
    request = stage.ask(Priority.BACKGROUND)
    stage.step(request, 20)
    stage.ask(Priority.INTERACTIVE)
    stage.answer(request, CANCELLED)
    stage.worker.told.clear()
    stage.scheduler.on_cancel(request, 0.0)

    assert stage.worker.told == [-request.id]
    assert request.ended


def test_a_worker_that_drains_takes_back_who_gave_way_and_nobody_else() -> None:
    stage = Stage(batch_sequences_max=1)
    request = stage.ask(Priority.BACKGROUND)
    stage.step(request, 20)
    urgent = stage.ask(Priority.INTERACTIVE)
    newcomer = stage.ask(Priority.NORMAL)
    stage.answer(request, CANCELLED)
    assert stage.scheduler.on_drain(stage.worker)
    stage.answer(urgent, DONE)
    assert stage.running() == [request.id]
    stage.answer(request, DONE)

    assert (stage.running(), stage.scheduler.has_work(stage.worker)) == ([], False)
    assert not newcomer.ended


def test_caches_that_would_not_fit_together_are_not_computed_together_and_one_always_is() -> None:
    stage = Stage(batch_sequences_max=4, kv_bytes_max=250)
    first, second, third = (stage.ask(Priority.NORMAL, tokens=100) for _ in range(3))
    assert stage.running() == [first.id, second.id]
    large = stage.ask(Priority.NORMAL, tokens=900)
    stage.answer(first, DONE)
    assert stage.running() == [second.id, third.id]
    for request in (second, third):
        stage.answer(request, DONE)
    assert stage.running() == [large.id]


def test_a_cache_that_is_larger_than_configured_is_refused_with_the_numbers() -> None:
    stage = Stage(kv_bytes_max=100_000)
    stage.scheduler = Scheduler(
        Model(kv_bytes_max=65536, batch_sequences_max=BATCH),
        Scheduling(),
        poison=PoisonWatch(8, 10, 3600.0),
        on_end=lambda *_: None,
    )
    place = Place(stage.worker, 1, context_tokens=10_000, kv_bytes_per_token=100, kv_bytes_max=65536)
    stage.scheduler.on_ready(place, 0.0)
    with pytest.raises(RpcError, match="70100 bytes") as refused:
        stage.ask(Priority.NORMAL, tokens=700)

    assert refused.value.kind is ErrorKind.LIMIT_EXCEEDED


def test_clients_with_no_place_get_those_that_another_has_too_many_of_and_not_its_last() -> None:
    stage = Stage(batch_sequences_max=3)
    many = [stage.ask(Priority.NORMAL, client="many") for _ in range(4)]
    for request in many[:3]:
        stage.step(request, 8)
    one, other, third = (stage.ask(Priority.NORMAL, client=client) for client in ("one", "other", "third"))

    assert stage.worker.going_on == [many[2].id, many[1].id]
    assert {one.id, other.id} < set(stage.running())
    assert third.id not in stage.running()


def test_a_client_with_no_place_gets_none_of_a_more_urgent_tier() -> None:
    stage = Stage(batch_sequences_max=2)
    for _ in range(3):
        stage.step(stage.ask(Priority.HIGH, client="many"), 8)
    stage.ask(Priority.NORMAL, client="one")

    assert stage.worker.going_on == []
