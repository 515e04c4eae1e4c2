"""A model's requests: who waits, who is being computed by which worker, and the end of each. Pure.

Rule 1: an accepted request is in the queue or in flight until it ends, and then in neither.
Rule 2: a place in the batch is taken until the worker has answered, also when the client no longer waits.
Rule 3: whoever takes a worker away calls `lose_worker` and decides about each request that it gets: back to the queue
with `resume`, or an end with `fail`. Rule 4: a request that is suspected of killing workers is computed alone for a
while: those that run give way, and go on behind it from what was delivered; questions, which are no requests, wait.
"""

import math
from collections.abc import Callable
from typing import Protocol

import msgspec

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import FinishReason, Priority
from mlxsup.protocol.worker_link import Generate, Generated, Step
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.pool.queue import RequestQueue
from mlxsup.supervisor.recovery.poison import PoisonWatch, quarantined_error


class Port(Protocol):
    """The way to a worker that is ready."""

    @property
    def questions(self) -> int:
        """So many that are no requests it has not answered."""
        ...

    def generate(self, id: int, order: Generate) -> None: ...

    def cancel(self, id: int, *, goes_on: bool) -> None:
        """`goes_on`: it will be given again, and nothing that the worker holds back of its text is to be said."""
        ...


class _Flight(msgspec.Struct):
    request: GenerationRequest
    port: Port
    generation: int
    gives_way: bool = False


OnEnd = Callable[[GenerationRequest, RpcError | None], None]
"""Called after each end of an accepted request; the error is None for a result."""


class RequestBook:
    def __init__(
        self, *, batch_sequences_max: int, queue_requests_max: int, poison: PoisonWatch, on_end: OnEnd
    ) -> None:
        self._batch_sequences_max = batch_sequences_max
        self._queue = RequestQueue(queue_requests_max)
        self._poison = poison
        self._on_end = on_end
        self._flights: dict[int, _Flight] = {}
        # Of what ran together when memory ran out.
        self._crowd_max = batch_sequences_max
        self._crowded_until_s = -math.inf
        self._port: Port | None = None
        self._draining = False
        self._generation = 0
        # Who wants to ask something, and is told when it may.
        self._askers: list[Callable[[], None]] = []
        # Of ended requests, smoothed: what a refusal's hint is made of.
        self._service_s = 1.0

    @property
    def queued(self) -> int:
        return len(self._queue)

    def in_flight(self, port: Port) -> list[GenerationRequest]:
        """Those that the worker behind `port` has."""
        return [flight.request for flight in self._flights.values() if flight.port is port]

    def queued_by_priority(self) -> dict[str, int]:
        counts = dict.fromkeys((tier.value for tier in Priority), 0)
        for request in self._queue:
            counts[request.priority.value] += 1
        return counts

    def submit(self, request: GenerationRequest, now_s: float) -> None:
        """Raises RpcError OVERLOADED when nothing more may wait."""
        port = None if self._draining else self._port
        if port is not None and not self._queue and self._may_start(request, now_s):
            self._start(request, port, now_s)
        else:
            self._queue.put(request, self._retry_after_ms())
            self._fill(now_s)

    def cancel(self, request: GenerationRequest, now_s: float) -> None:
        """A request that waits ends now, one in flight when the worker answers. One that has ended stays so."""
        if request.ended:
            return
        request.cancel_asked = True
        if self._queue.remove(request):
            self._finish_cancelled(request, now_s)
            self._fill(now_s)
        else:
            self._stop_computing(request)

    def expire(self, request: GenerationRequest, now_s: float) -> None:
        """The request's deadline has passed."""
        if request.ended:
            return
        if not self._queue.remove(request):
            self._stop_computing(request)
        error = RpcError(
            ErrorKind.DEADLINE_EXCEEDED,
            "the deadline passed before the answer was complete; allow more time or fewer tokens",
        )
        self.fail(request, error)
        self._fill(now_s)

    @property
    def admits_questions(self) -> bool:
        """Not while a request is to be computed alone, or is next."""
        if not self._poison.has_loners:
            return True
        head = self._queue.peek()
        if head is not None and self._poison.is_loner(head):
            return False
        return not any(self._poison.is_loner(flight.request) for flight in self._flights.values())

    def when_questions_are_admitted(self, tell: Callable[[], None]) -> None:
        """`tell` is called once, perhaps at once, unless it is given up before."""
        self._askers.append(tell)
        self._admit_questions()

    def give_up_asking(self, tell: Callable[[], None]) -> None:
        if tell in self._askers:
            self._askers.remove(tell)

    def look_again(self, now_s: float) -> None:
        """A question is answered, for which somebody may have waited."""
        self._fill(now_s)

    def take_step(self, port: Port, step: Step, now_s: float) -> None:
        for delta in step.deltas:
            flight = self._flights.get(delta.id)
            if flight is not None and flight.port is port:
                flight.request.deliver(delta.text, delta.tokens, now_s)
        if self._poison.has_loners:
            self._fill(now_s)

    def take_answer(self, port: Port, id: int, answer: Generated | RpcError, now_s: float) -> None:
        flight = self._flights.get(id)
        if flight is None or flight.port is not port:
            return
        del self._flights[id]
        request = flight.request
        if request.ended:
            self._poison.forget(request)
        elif isinstance(answer, RpcError):
            self.fail(request, answer)
        elif flight.gives_way and answer.finish_reason is FinishReason.CANCELLED and not request.cancel_asked:
            self._go_behind(request)
        else:
            self._learn(request, now_s)
            if answer.finish_reason is not FinishReason.CANCELLED:
                self._poison.note_completed(request)
            request.finish(answer, flight.generation, now_s)
            self._note_end(request, None)
        self._fill(now_s)

    def gain_worker(self, port: Port, generation: int, now_s: float) -> None:
        """A worker is ready: from now on what waits goes there."""
        self._port = port
        self._draining = False
        self._generation = generation
        self._fill(now_s)

    def pause(self, port: Port) -> None:
        """Nothing more is started there; what is in flight goes on."""
        if self._port is port:
            self._port = None

    def drain(self, port: Port) -> bool:
        """Only who has had its turn before is started there; whether it has anything to do yet."""
        if self._port is port:
            self._draining = True
        return self.has_work(port)

    def has_work(self, port: Port) -> bool:
        """Whether a worker that drains has to stay."""
        return bool(self.in_flight(port)) or (self._port is port and self._queue.returned > 0)

    def lose_worker(self, port: Port, now_s: float) -> list[GenerationRequest]:
        """What the worker had not answered. The caller ends each that nobody has ended, or resumes it."""
        self.pause(port)
        unanswered = self.in_flight(port)
        for id, flight in list(self._flights.items()):
            if flight.port is not port:
                continue
            del self._flights[id]
            if flight.request.ended:
                self._poison.forget(flight.request)
            elif flight.request.cancel_asked:
                self._finish_cancelled(flight.request, now_s)
        self._admit_questions()
        return unanswered

    def limit_batch(self, sequences_max: int, until_s: float) -> None:
        """More together were too much for the memory."""
        self._crowd_max = min(sequences_max, self._batch_sequences_max)
        self._crowded_until_s = until_s

    def resume(self, requests: list[GenerationRequest], now_s: float) -> None:
        """Back to the head of the queue, in their order; they go on from what was delivered."""
        for request in reversed(requests):
            request.note_resume()
            self._queue.put_back(request)
        self._fill(now_s)

    def fail(self, request: GenerationRequest, error: RpcError) -> None:
        request.fail(_with_progress(error, request))
        self._note_end(request, error)

    def fail_queued(self, error: RpcError) -> None:
        while (request := self._queue.pop()) is not None:
            self.fail(request, error)

    def fail_newcomers(self, error: RpcError) -> None:
        """Those that wait, but for who has had its turn and may have it again in the worker that is there."""
        for request in list(self._queue)[self._queue.returned if self._port is not None else 0 :]:
            self._queue.remove(request)
            self.fail(request, error)

    def _fill(self, now_s: float) -> None:
        self._fill_batch(now_s)
        self._admit_questions()

    def _fill_batch(self, now_s: float) -> None:
        while self._port is not None:
            request = self._queue.peek()
            if request is None or (self._draining and not self._queue.returned):
                return
            if not self._may_start(request, now_s):
                self._give_way_to(request)
                return
            self._queue.pop()
            entry = self._poison.find(request.model, request.order)
            if entry is None:
                self._start(request, self._port, now_s)
            else:
                # The same was sent twice, and the other one has been found out meanwhile.
                self.fail(request, quarantined_error(entry))

    def _may_start(self, request: GenerationRequest, now_s: float) -> bool:
        assert self._port is not None
        running = self.in_flight(self._port)
        if len(running) >= (self._crowd_max if now_s < self._crowded_until_s else self._batch_sequences_max):
            return False
        self._poison.note_start(request, now_s)
        if not self._poison.has_loners:
            return True
        # Nobody joins one that is to be computed alone.
        if any(self._poison.is_loner(other) for other in running):
            return False
        return not self._poison.is_loner(request) or not (running or self._port.questions)

    def _admit_questions(self) -> None:
        if self._askers and self.admits_questions:
            askers, self._askers = self._askers, []
            for tell in askers:
                tell()

    def _give_way_to(self, request: GenerationRequest) -> None:
        """Who lost its worker and is to be computed alone need not wait for the end of others, however long they are.

        A newcomer that is known for a death does wait: else one who sends it again and again would stop all others.
        """
        if not request.resumed or not self._poison.is_loner(request):
            return
        flights = [flight for flight in self._flights.values() if flight.port is self._port]
        # As long as one can't give way, the others would wait for nothing.
        if any(self._poison.is_loner(flight.request) or not flight.request.resume for flight in flights):
            return
        for flight in flights:
            if not flight.gives_way:
                flight.gives_way = True
                flight.port.cancel(flight.request.id, goes_on=True)

    def _go_behind(self, request: GenerationRequest) -> None:
        """It has given way, and goes on when those have been computed that had to be alone."""
        self._queue.put_behind(request)

    def _start(self, request: GenerationRequest, port: Port, now_s: float) -> None:
        if request.marks.dispatched_s is None:
            request.marks.dispatched_s = now_s
        self._flights[request.id] = _Flight(request, port, self._generation)
        try:
            port.generate(request.id, request.remaining_order())
        except RpcError as error:
            del self._flights[request.id]
            self.fail(request, error)

    def _stop_computing(self, request: GenerationRequest) -> None:
        flight = self._flights.get(request.id)
        if flight is not None:
            flight.port.cancel(request.id, goes_on=False)

    def _finish_cancelled(self, request: GenerationRequest, now_s: float) -> None:
        request.finish_cancelled(now_s)
        self._note_end(request, None)

    def _note_end(self, request: GenerationRequest, error: RpcError | None) -> None:
        if request.id not in self._flights:
            # Else the worker may yet die of it: until it has answered, the request is what it was.
            self._poison.forget(request)
        self._on_end(request, error)
        self._admit_questions()

    def _learn(self, request: GenerationRequest, now_s: float) -> None:
        assert request.marks.dispatched_s is not None
        self._service_s += 0.2 * (now_s - request.marks.dispatched_s - self._service_s)

    def _retry_after_ms(self) -> int:
        """When a place in the queue may be free: one of the batch ends about every so often."""
        return max(1, round(self._service_s / self._batch_sequences_max * 1000))


# Of these a client wants to know how far it got.
_PARTLY_DELIVERED = frozenset(
    {
        ErrorKind.WORKER_DIED,
        ErrorKind.DEADLINE_EXCEEDED,
        ErrorKind.QUARANTINED,
        ErrorKind.CIRCUIT_OPEN,
        ErrorKind.MODEL_LOAD_FAILED,
    }
)


def _with_progress(error: RpcError, request: GenerationRequest) -> RpcError:
    if error.kind not in _PARTLY_DELIVERED:
        return error
    return RpcError(
        error.kind,
        error.message,
        retriable=error.data.retriable,
        tokens_delivered=len(request.tokens),
        retry_after_ms=error.data.retry_after_ms,
        death=error.data.death,
    )
