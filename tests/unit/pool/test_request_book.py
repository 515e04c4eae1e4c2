"""Each accepted request is in one place until it ends, and only its own worker can say something of it."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import FinishReason
from mlxsup.protocol.worker_link import Delta, Generate, Generated, Step
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.pool.request_book import RequestBook
from mlxsup.supervisor.recovery.poison import PoisonWatch
from tests.fakes.collecting_sink import CollectingSink
from tests.fakes.requests import make_request

DONE = Generated(finish_reason=FinishReason.STOP, prompt_tokens=1, completion_tokens=1)
CANCELLED = Generated(finish_reason=FinishReason.CANCELLED, prompt_tokens=1, completion_tokens=1)
BATCH = 2
QUEUE = 5


class Port:
    def __init__(self) -> None:
        self.orders: dict[int, Generate] = {}
        self.cancelled: list[int] = []
        self.goes_on = False
        self.questions = 0

    def generate(self, id: int, order: Generate) -> None:
        assert id not in self.orders
        self.orders[id] = order

    def cancel(self, id: int, *, goes_on: bool) -> None:
        self.cancelled.append(id)
        self.goes_on = goes_on


def make_book(ends: list[int] | None = None, poison: PoisonWatch | None = None) -> RequestBook:
    return RequestBook(
        batch_sequences_max=BATCH,
        queue_requests_max=QUEUE,
        poison=poison or PoisonWatch(8, 10, 3600.0),
        on_end=lambda request, _: None if ends is None else ends.append(request.id),
    )


def request_of(sink: CollectingSink, prompt: str = "p") -> GenerationRequest:
    return make_request(sink, prompt=prompt, tokens=10, now_s=0.0)


def test_another_worker_can_neither_add_to_a_request_nor_end_it() -> None:
    book, old, new = make_book(), Port(), Port()
    sink = CollectingSink()
    request = request_of(sink)
    book.gain_worker(new, 2, 0.0)
    book.submit(request, 0.0)
    book.take_step(old, Step(deltas=[Delta(request.id, "wrong", [1])]), 0.0)
    book.take_answer(old, request.id, DONE, 0.0)
    assert (sink.pieces, sink.outcomes) == ([], [])
    book.take_step(new, Step(deltas=[Delta(request.id, "right", [1])]), 0.0)
    book.take_answer(new, request.id, DONE, 0.0)

    assert sink.text == "right"


def test_what_is_resumed_is_ordered_from_where_it_was() -> None:
    book, old, new = make_book(), Port(), Port()
    request = request_of(CollectingSink())
    book.gain_worker(old, 1, 0.0)
    book.submit(request, 0.0)
    book.take_step(old, Step(deltas=[Delta(request.id, "né", [7, 8]), Delta(999, "nobody", [1])]), 0.0)
    assert book.lose_worker(old, 0.0) == [request]
    book.resume([request], 0.0)
    book.gain_worker(new, 2, 0.0)

    assert old.orders[request.id].delivered_tokens == []
    assert new.orders[request.id].delivered_tokens == [7, 8]
    assert new.orders[request.id].delivered_chars == 2
    assert new.orders[request.id].max_tokens == 10


def test_a_paused_worker_keeps_what_it_has_and_gets_nothing_more() -> None:
    book, port = make_book(), Port()
    first, second = request_of(CollectingSink()), request_of(CollectingSink())
    book.gain_worker(port, 1, 0.0)
    book.submit(first, 0.0)
    book.pause(port)
    book.submit(second, 0.0)

    assert list(port.orders) == [first.id]
    assert book.in_flight(port) == [first]
    assert book.queued == 1


def test_a_refusal_of_the_worker_is_the_requests_end() -> None:
    book, port = make_book(), Port()
    sink = CollectingSink()
    request = request_of(sink)
    book.gain_worker(port, 1, 0.0)
    book.submit(request, 0.0)
    book.take_answer(port, request.id, RpcError(ErrorKind.LIMIT_EXCEEDED, "too long"), 0.0)

    assert sink.failure.kind is ErrorKind.LIMIT_EXCEEDED


def test_a_suspect_waits_for_an_empty_batch_and_then_nobody_joins_it() -> None:
    poison = PoisonWatch(8, 10, 3600.0)
    book, port = make_book(poison=poison), Port()
    runs, suspect, later = (request_of(CollectingSink()) for _ in range(3))
    book.gain_worker(port, 1, 0.0)
    book.submit(runs, 0.0)
    poison.note_death([suspect], "aborted", 0.0)
    book.submit(suspect, 0.0)
    book.submit(later, 0.0)
    assert book.in_flight(port) == [runs]
    book.take_answer(port, runs.id, DONE, 0.0)
    assert book.in_flight(port) == [suspect]
    book.take_step(port, Step(deltas=[Delta(suspect.id, "", [1] * 7)]), 0.0)
    assert book.in_flight(port) == [suspect]
    book.take_step(port, Step(deltas=[Delta(suspect.id, "", [1])]), 0.0)

    assert book.in_flight(port) == [suspect, later]


def test_who_runs_gives_way_to_one_that_is_to_be_computed_alone_and_goes_on_behind_it() -> None:
    poison = PoisonWatch(8, 10, 3600.0)
    book, old, port = make_book(poison=poison), Port(), Port()
    first, second = (request_of(CollectingSink()) for _ in range(2))
    book.gain_worker(old, 1, 0.0)
    for request in (first, second):
        book.submit(request, 0.0)
    lost = book.lose_worker(old, 0.0)
    poison.note_death(lost, "aborted", 0.0)
    book.resume(lost, 0.0)
    book.gain_worker(port, 2, 0.0)
    assert list(port.orders) == [first.id]

    book.take_step(port, Step(deltas=[Delta(first.id, "12345678", [1] * 8)]), 0.0)
    assert (list(port.orders), port.cancelled, port.goes_on) == ([first.id], [first.id], True)
    del port.orders[first.id]
    book.take_answer(port, first.id, CANCELLED, 0.0)
    assert list(port.orders) == [second.id]

    book.take_step(port, Step(deltas=[Delta(second.id, "12345678", [1] * 8)]), 0.0)
    assert port.orders[first.id].delivered_tokens == [1] * 8
    assert list(port.orders) == [second.id, first.id]
    assert (first.resumed, first.ended) == (1, False)


def lost_with(book: RequestBook, poison: PoisonWatch, request: GenerationRequest) -> None:
    """It was in flight when a worker died, and goes on."""
    gone = Port()
    book.gain_worker(gone, 1, 0.0)
    book.submit(request, 0.0)
    lost = book.lose_worker(gone, 0.0)
    poison.note_death(lost, "aborted", 0.0)
    book.resume(lost, 0.0)


def test_nobody_gives_way_as_long_as_one_can_not_and_nobody_joins_them() -> None:
    poison = PoisonWatch(8, 10, 3600.0)
    book, old, port = make_book(poison=poison), Port(), Port()
    plain, other, newcomer, suspect = (request_of(CollectingSink(), prompt) for prompt in "abcd")
    plain.resume = False
    lost_with(book, poison, suspect)
    book.gain_worker(old, 2, 0.0)
    (lost,) = book.lose_worker(old, 0.0)
    book.gain_worker(port, 3, 0.0)
    for request in (plain, other, newcomer):
        book.submit(request, 0.0)
    assert list(port.orders) == [plain.id, other.id]

    book.resume([lost], 0.0)
    assert port.cancelled == []
    del port.orders[plain.id]
    book.take_answer(port, plain.id, DONE, 0.0)
    assert (list(port.orders), port.cancelled) == ([other.id], [other.id])


def test_who_sends_a_suspicious_request_makes_nobody_give_way() -> None:
    poison = PoisonWatch(8, 10, 3600.0)
    book, port = make_book(poison=poison), Port()
    running, suspect = (request_of(CollectingSink(), prompt) for prompt in "ab")
    book.gain_worker(port, 1, 0.0)
    book.submit(running, 0.0)
    poison.note_death([suspect], "aborted", 0.0)
    book.submit(suspect, 0.0)

    assert (list(port.orders), port.cancelled) == ([running.id], [])


def test_after_memory_ran_out_fewer_are_computed_together_for_a_while() -> None:
    book, port = make_book(), Port()
    book.limit_batch(1, until_s=600.0)
    book.gain_worker(port, 1, 0.0)
    for _ in range(3):
        book.submit(request_of(CollectingSink()), 0.0)
    assert len(port.orders) == 1

    book.look_again(599.0)
    assert len(port.orders) == 1
    book.look_again(600.0)
    assert len(port.orders) == BATCH


def test_a_question_and_a_request_that_is_to_be_computed_alone_wait_for_each_other() -> None:
    poison = PoisonWatch(8, 10, 3600.0)
    book, port = make_book(poison=poison), Port()
    suspect = request_of(CollectingSink())
    told: list[int] = []
    book.gain_worker(port, 1, 0.0)
    port.questions = 1
    poison.note_death([suspect], "aborted", 0.0)
    book.submit(suspect, 0.0)
    assert (list(port.orders), book.admits_questions) == ([], False)

    book.when_questions_are_admitted(lambda: told.append(1))
    port.questions = 0
    book.look_again(0.0)
    assert (list(port.orders), told) == ([suspect.id], [])

    book.take_step(port, Step(deltas=[Delta(suspect.id, "12345678", [1] * 8)]), 0.0)
    assert told == [1]


class Life(RuleBasedStateMachine):
    """Workers come and go, clients cancel and run out of time: every request ends once, and none is forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[int] = []
        self.poison = PoisonWatch(2, 100, 3600.0)
        self.book = make_book(self.ends, self.poison)
        self.ports: list[Port] = []
        self.serving: Port | None = None
        self.sinks: dict[int, CollectingSink] = {}
        self.requests: dict[int, GenerationRequest] = {}

    @rule()
    def submit(self) -> None:
        sink = CollectingSink()
        request = request_of(sink)
        if self.book.queued >= QUEUE:
            with pytest.raises(RpcError, match="full"):
                self.book.submit(request, 0.0)
            return
        self.book.submit(request, 0.0)
        self.sinks[request.id], self.requests[request.id] = sink, request

    @precondition(lambda self: len(self.ports) < 2)
    @rule()
    def gain(self) -> None:
        self.serving = Port()
        self.ports.append(self.serving)
        self.book.gain_worker(self.serving, 1, 0.0)

    @precondition(lambda self: self.ports)
    @rule(data=st.data(), crash=st.booleans(), fail=st.booleans())
    def lose(self, data: st.DataObject, crash: bool, fail: bool) -> None:
        port = self.ports.pop(data.draw(st.integers(0, len(self.ports) - 1)))
        if port is self.serving:
            self.serving = None
        unanswered = self.book.lose_worker(port, 0.0)
        guilty = self.poison.note_death(unanswered, "aborted", 0.0) if crash else []
        lost = [request for request in unanswered if not request.ended]
        for request in lost:
            if fail or request in guilty:
                self.book.fail(request, RpcError(ErrorKind.WORKER_DIED, "x"))
        self.book.resume([request for request in lost if not request.ended], 0.0)

    @precondition(lambda self: any(port.orders for port in self.ports))
    @rule(data=st.data(), tokens=st.integers(0, 3), ends=st.booleans())
    def compute(self, data: st.DataObject, tokens: int, ends: bool) -> None:
        port = data.draw(st.sampled_from([port for port in self.ports if port.orders]))
        id = data.draw(st.sampled_from(sorted(port.orders)))
        self.book.take_step(port, Step(deltas=[Delta(id, "x" * tokens, [1] * tokens)]), 0.0)
        if ends:
            del port.orders[id]
            heard = id in port.cancelled and data.draw(st.booleans())
            port.cancelled = [other for other in port.cancelled if other != id]
            self.book.take_answer(port, id, CANCELLED if heard else DONE, 0.0)

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), expire=st.booleans())
    def leave(self, data: st.DataObject, expire: bool) -> None:
        request = self.requests[data.draw(st.sampled_from(sorted(self.requests)))]
        (self.book.expire if expire else self.book.cancel)(request, 0.0)

    @invariant()
    def each_is_in_one_place_until_it_ends(self) -> None:
        waiting = [request.id for request in self.book._queue]
        flying = [request.id for port in self.ports for request in self.book.in_flight(port)]
        assert len(waiting) == self.book.queued
        assert len(set(waiting + flying)) == len(waiting) + len(flying)
        for id, request in self.requests.items():
            sink = self.sinks[id]
            assert len(sink.outcomes) == len(sink.counted) == self.ends.count(id) == request.ended
            assert request.ended or (id in waiting) != (id in flying)
            assert not (request.ended and id in waiting)

    @invariant()
    def no_batch_is_overfull_and_suspects_are_alone(self) -> None:
        for port in self.ports:
            flying = self.book.in_flight(port)
            assert len(flying) <= BATCH
            assert sorted(request.id for request in flying) == sorted(port.orders)
            if any(self.poison.is_loner(request) for request in flying):
                assert len(flying) == 1

    @invariant()
    def nobody_waits_while_there_is_room(self) -> None:
        if self.serving is not None and not self.book.in_flight(self.serving):
            assert self.book.queued == 0


TestLife = Life.TestCase


@pytest.mark.parametrize("kind", [ErrorKind.WORKER_DIED, ErrorKind.QUARANTINED])
def test_an_error_of_a_death_says_how_far_the_request_had_come(kind: ErrorKind) -> None:
    book, port = make_book(), Port()
    sink = CollectingSink()
    request = request_of(sink)
    book.gain_worker(port, 1, 0.0)
    book.submit(request, 0.0)
    book.take_step(port, Step(deltas=[Delta(request.id, "x", [1, 2, 3])]), 0.0)
    (lost,) = book.lose_worker(port, 0.0)
    book.fail(lost, RpcError(kind, "x", retriable=True))

    assert (sink.failure.data.tokens_delivered, sink.failure.data.retriable) == (3, True)
