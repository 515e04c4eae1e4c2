"""The one owner of a model: of its state, its requests, and one worker's life after the other.

Nobody asks for a state in order to act on it: they `submit`, or `ensure_ready`, and the runner decides. A worker is
started when something wants the model. Whoever waits for it is settled when its load resolves, however it does, and
what it had in flight is settled when it ends, however it ends.
"""

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import trio

from mlxsup.config.schema import Model as ModelConfig
from mlxsup.config.schema import Worker as WorkerConfig
from mlxsup.protocol import worker_link as link
from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.service import LoadOptions
from mlxsup.supervisor.events import EventBus
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.pool.life import Ending, Life, WorkerSource
from mlxsup.supervisor.pool.lifecycle import FOLLOWS, WorkerState
from mlxsup.supervisor.pool.request_book import RequestBook
from mlxsup.supervisor.pool.worker import Handlers, Worker, WorkerGoneError

_log = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")
OnProgress = Callable[[link.LoadProgress], None]


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """How things stand, for display only: whoever wants to act tells the runner."""

    state: WorkerState
    reason: str | None
    pid: int | None
    generation: int
    pinned: bool
    hello: link.Hello | None


class _Attempt:
    """One load, and those who wait for it."""

    def __init__(self) -> None:
        self.waiters = 0
        self._done = trio.Event()
        self._error: RpcError | None = None
        self.listeners: list[OnProgress] = []

    def settle(self, error: RpcError | None) -> None:
        if not self._done.is_set():
            self._error = error
            self._done.set()

    async def wait(self) -> None:
        self.waiters += 1
        try:
            await self._done.wait()
        finally:
            self.waiters -= 1
        if self._error is not None:
            raise self._error


class _WorkerPort:
    """Requests on their way to a ready worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def generate(self, id: int, order: link.Generate) -> None:
        self._worker.send_request(id, link.GENERATE, order)

    def cancel(self, id: int) -> None:
        self._worker.send_notification(link.CANCEL, link.Cancel(id=id))


class ModelRunner:
    def __init__(
        self, name: str, model: ModelConfig, config: WorkerConfig, source: WorkerSource, events: EventBus
    ) -> None:
        self.name = name
        self._configured = self._model = model
        self._config = config
        self._source = source
        self._events = events
        self._book = RequestBook(
            batch_sequences_max=model.batch_sequences_max, queue_requests_max=model.queue_requests_max
        )
        self._state = WorkerState.STOPPED
        self._reason: str | None = None
        self._generation = 0
        self._pinned = model.pin
        self._attempt = _Attempt()
        self._wanted = trio.Event()
        self._life: Life | None = None
        self._life_over = trio.Event()
        self._worker: Worker | None = None
        self._closing: RpcError | None = None

    # What others see.

    def snapshot(self) -> Snapshot:
        worker = self._worker
        return Snapshot(
            state=self._state,
            reason=self._reason,
            pid=worker.pid if worker else None,
            generation=self._generation,
            pinned=self._pinned,
            hello=worker.hello if worker else None,
        )

    @property
    def queued(self) -> int:
        return self._book.queued

    def queued_by_priority(self) -> dict[str, int]:
        return self._book.queued_by_priority()

    # What others want.

    def submit(self, request: GenerationRequest) -> None:
        """Take the request over: from here on it ends through its sink.

        Raises:
            RpcError: it is refused, and was never accepted.
        """
        if self._closing is not None:
            raise self._closing
        self._book.submit(request, trio.current_time())
        self._wanted.set()

    def cancel(self, request: GenerationRequest) -> None:
        self._book.cancel(request, trio.current_time())

    def expire(self, request: GenerationRequest) -> None:
        self._book.expire(request)

    async def ensure_ready(self, on_progress: OnProgress | None = None) -> Worker:
        """The ready worker, started if need be.

        Raises:
            RpcError: the load failed, or the supervisor is shutting down.
        """
        while self._state is not WorkerState.READY or self._worker is None:
            if self._closing is not None:
                raise self._closing
            attempt = self._attempt
            if on_progress is not None:
                attempt.listeners.append(on_progress)
            self._wanted.set()
            await attempt.wait()
        return self._worker

    async def load(self, *, pin: bool | None, options: LoadOptions | None, on_progress: OnProgress) -> None:
        """As `ensure_ready`; a worker that was loaded with other options than these is replaced.

        An option that is not given is as configured, and none goes beyond that.
        """
        if pin is not None:
            self._pinned = pin
        if options is not None:
            bounds = [options.context_tokens_max, self._configured.context_tokens_max]
            bound = min((tokens for tokens in bounds if tokens is not None), default=None)
            model = msgspec.structs.replace(self._model, context_tokens_max=bound)
            if model != self._model:
                self._configured = self._model = model
                await self._stop(at_once=False)
        await self.ensure_ready(on_progress)

    async def unload(self, *, force: bool) -> None:
        """End the worker: after its requests, or at once with `force`."""
        if self._pinned and not force:
            raise RpcError(
                ErrorKind.INVALID_PARAMS, "this model is pinned: unload it with `force`", path="$.force"
            )
        self._pinned = False
        await self._stop(at_once=force)

    async def call(self, method: str, params: Any, result_type: type[ResultT]) -> ResultT:
        """A question to the worker that is no generation."""
        worker = await self.ensure_ready()
        try:
            return await worker.call(method, params, result_type)
        except WorkerGoneError:
            raise RpcError(ErrorKind.WORKER_DIED, "the worker died before it answered; try again") from None

    async def close(self, drain_s: float, hurry: trio.Event) -> None:
        """Accept nothing more, let what runs end within `drain_s` or until `hurry`, then end the worker."""
        self._closing = RpcError(ErrorKind.SHUTTING_DOWN, "the supervisor is shutting down")
        self._book.fail_queued(self._closing)
        self._attempt.settle(self._closing)
        if self._life is None:
            return
        self._life.stop(at_once=False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._stop_after, drain_s, hurry)
            await self._life_over.wait()
            nursery.cancel_scope.cancel()

    async def _stop_after(self, drain_s: float, hurry: trio.Event) -> None:
        with trio.move_on_after(drain_s):
            await hurry.wait()
        if self._life is not None:
            self._life.stop(at_once=True)

    async def _stop(self, *, at_once: bool) -> None:
        if self._life is not None:
            self._life.stop(at_once=at_once)
            await self._life_over.wait()

    # What happens.

    async def run(self) -> None:
        """One life after the other, each when something wants the model; until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            if self._closing is None:
                await self._live()
                if self._book.queued or self._attempt.waiters:
                    self._wanted.set()

    async def _live(self) -> None:
        attempt = self._attempt
        handlers = Handlers(
            step=lambda step: self._book.take_step(step, trio.current_time()),
            answer=self._take_answer,
            progress=lambda progress: self._report(attempt, progress),
            heartbeat=lambda _: None,
        )
        self._life_over = trio.Event()
        self._life = Life(self._source, self._model, self._config, handlers, self)
        stopped = RpcError(ErrorKind.CANCELLED, "the model was unloaded meanwhile", retriable=True)
        ending = Ending(WorkerState.STOPPED, stopped)
        try:
            ending = await self._life.run()
        finally:
            self._worker = None
            self._life = None
            self._wanted = trio.Event()
            if self._attempt is attempt:
                self._attempt = _Attempt()
            error = ending.error or self._closing or stopped
            attempt.settle(error)
            self._book.lose_worker(error, trio.current_time())
            if ending.error is not None and not ending.served:
                # Whoever waits for a worker that can't be had is told so; the next request tries again.
                self._book.fail_queued(error)
            self._reason = ending.error.message if ending.error else None
            self.enter(ending.state)
            self._life_over.set()

    def enter(self, state: WorkerState) -> None:
        assert state is self._state or state in FOLLOWS[self._state], f"{self._state} to {state}"
        if state in (WorkerState.SPAWNING, WorkerState.READY):
            self._reason = None
        self._state = state
        _log.info("%s: %s%s", self.name, state, f" ({self._reason})" if self._reason else "")
        self._events.publish("worker", self.name, state, generation=self._generation, reason=self._reason)

    def spawned(self, worker: Worker) -> None:
        self._worker = worker
        self._generation += 1

    def ready(self, worker: Worker, loaded: link.Loaded) -> None:
        _log.info(
            "%s: loaded in %.1f s, %d MB of weights", self.name, loaded.load_s, loaded.weights_bytes // 10**6
        )
        # Who comes from now on and does not find it ready, because it drains, waits for the next.
        attempt, self._attempt = self._attempt, _Attempt()
        attempt.settle(None)
        self._book.gain_worker(_WorkerPort(worker), self._generation, trio.current_time())

    def draining(self) -> bool:
        self._book.pause()
        return self._book.in_flight > 0

    def _take_answer(self, id: int, answer: link.Generated | RpcError) -> None:
        self._book.take_answer(id, answer, trio.current_time())
        if self._life is not None and not self._book.in_flight:
            self._life.idle()

    def _report(self, attempt: _Attempt, progress: link.LoadProgress) -> None:
        for listener in attempt.listeners:
            listener(progress)
