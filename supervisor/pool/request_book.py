"""A model's requests: who waits, who is being computed, and the end of each. Pure.

Rule 1: an accepted request is in the queue or in flight until it ends, and then in neither.
Rule 2: a place in the batch is taken until the worker has answered, also when the client no longer waits.
Rule 3: whoever takes the worker away calls `lose_worker`, which settles what the worker had.
"""

from collections.abc import Iterator
from typing import Protocol

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import Priority
from mlxsup.protocol.worker_link import Generate, Generated, Step
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.pool.queue import RequestQueue


class Port(Protocol):
    """The way to a worker that is ready."""

    def generate(self, id: int, order: Generate) -> None: ...

    def cancel(self, id: int) -> None: ...


class RequestBook:
    def __init__(self, *, batch_sequences_max: int, queue_requests_max: int) -> None:
        self._batch_sequences_max = batch_sequences_max
        self._queue = RequestQueue(queue_requests_max)
        self._in_flight: dict[int, GenerationRequest] = {}
        self._port: Port | None = None
        self._paused = False
        self._generation = 0
        # Of ended requests, smoothed: what a refusal's hint is made of.
        self._service_s = 1.0

    @property
    def queued(self) -> int:
        return len(self._queue)

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    def queued_by_priority(self) -> dict[str, int]:
        counts = dict.fromkeys((tier.value for tier in Priority), 0)
        for request in self._queue:
            counts[request.priority.value] += 1
        return counts

    def submit(self, request: GenerationRequest, now_s: float) -> None:
        """Raises RpcError OVERLOADED when nothing more may wait."""
        if self._has_place() and not self._queue:
            self._start(request, now_s)
        else:
            self._queue.put(request, self._retry_after_ms())

    def cancel(self, request: GenerationRequest, now_s: float) -> None:
        """A request that waits ends now, one in flight when the worker answers. One that has ended stays so."""
        if request.ended:
            return
        request.cancel_asked = True
        if self._queue.remove(request):
            request.finish_cancelled(now_s)
        else:
            self._stop_computing(request)

    def expire(self, request: GenerationRequest) -> None:
        """The request's deadline has passed."""
        if request.ended:
            return
        if not self._queue.remove(request):
            self._stop_computing(request)
        request.fail(
            RpcError(
                ErrorKind.DEADLINE_EXCEEDED,
                "the deadline passed before the answer was complete; allow more time or fewer tokens",
                tokens_delivered=len(request.tokens),
            )
        )

    def take_step(self, step: Step, now_s: float) -> None:
        for delta in step.deltas:
            request = self._in_flight.get(delta.id)
            if request is not None:
                request.deliver(delta.text, delta.tokens, now_s)

    def take_answer(self, id: int, answer: Generated | RpcError, now_s: float) -> None:
        request = self._in_flight.pop(id, None)
        if request is not None and not request.ended:
            if isinstance(answer, RpcError):
                request.fail(answer)
            else:
                request.finish(answer, self._generation, now_s)
                self._learn(request, now_s)
        self._fill(now_s)

    def gain_worker(self, port: Port, generation: int, now_s: float) -> None:
        """A worker is ready: give it what waits."""
        self._port = port
        self._paused = False
        self._generation = generation
        self._fill(now_s)

    def pause(self) -> None:
        """Nothing more is started; what is in flight goes on, and can be cancelled."""
        self._paused = True

    def lose_worker(self, error: RpcError, now_s: float) -> None:
        """Every request in flight ends: with `error`, or as cancelled where that was asked for."""
        self._port = None
        lost, self._in_flight = self._in_flight, {}
        for request in lost.values():
            if request.ended:
                continue
            if request.cancel_asked:
                request.finish_cancelled(now_s)
            else:
                request.fail(_with_progress(error, request))

    def fail_queued(self, error: RpcError) -> None:
        while (request := self._queue.pop()) is not None:
            request.fail(error)

    def waiting(self) -> Iterator[GenerationRequest]:
        return iter(self._queue)

    def running(self) -> Iterator[GenerationRequest]:
        return iter(self._in_flight.values())

    def _fill(self, now_s: float) -> None:
        while self._has_place():
            request = self._queue.pop()
            if request is None:
                return
            self._start(request, now_s)

    def _has_place(self) -> bool:
        return (
            self._port is not None and not self._paused and len(self._in_flight) < self._batch_sequences_max
        )

    def _start(self, request: GenerationRequest, now_s: float) -> None:
        assert self._port is not None
        request.marks.dispatched_s = now_s
        self._in_flight[request.id] = request
        try:
            self._port.generate(request.id, request.order)
        except RpcError as error:
            del self._in_flight[request.id]
            request.fail(error)

    def _stop_computing(self, request: GenerationRequest) -> None:
        if self._port is not None and request.id in self._in_flight:
            self._port.cancel(request.id)

    def _learn(self, request: GenerationRequest, now_s: float) -> None:
        assert request.marks.dispatched_s is not None
        self._service_s += 0.2 * (now_s - request.marks.dispatched_s - self._service_s)

    def _retry_after_ms(self) -> int:
        """When a place in the queue may be free: one of the batch ends about every so often."""
        return max(1, round(self._service_s / self._batch_sequences_max * 1000))


def _with_progress(error: RpcError, request: GenerationRequest) -> RpcError:
    return RpcError(
        error.kind,
        error.message,
        retriable=error.data.retriable,
        tokens_delivered=len(request.tokens),
        death=error.data.death,
    )
