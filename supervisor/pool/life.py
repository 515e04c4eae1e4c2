"""One worker's life: spawned, greeted, loaded, served, drained, stopped; and what its end means."""

import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

import msgspec
import trio

from mlxsup.config.schema import Model as ModelConfig
from mlxsup.config.schema import Worker as WorkerConfig
from mlxsup.protocol import worker_link as link
from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.supervisor.pool.deaths import describe_death, explain_death
from mlxsup.supervisor.pool.lifecycle import WorkerState
from mlxsup.supervisor.pool.worker import Handlers, Worker, WorkerGoneError

_log = logging.getLogger(__name__)


class WorkerSource(msgspec.Struct, frozen=True):
    """Where workers come from; a test hands in its own.

    `locate` gives the checked model folder or raises RpcError; `spawn` is `open_worker` but for the handlers.
    """

    locate: Callable[[], Awaitable[Path]]
    spawn: Callable[[Handlers], AbstractAsyncContextManager[Worker]]


class Owner(Protocol):
    """Whom a life tells what happens, at once; the owner alone changes the model's state."""

    def enter(self, state: WorkerState) -> None: ...

    def spawned(self, worker: Worker) -> None: ...

    def ready(self, worker: Worker, loaded: link.Loaded) -> None: ...

    def draining(self) -> bool:
        """Start nothing more; whether anything is still in flight."""
        ...


class Ending(msgspec.Struct, frozen=True):
    """How a life ended: `error` is None when it was asked for; `served` when the worker had been ready."""

    state: WorkerState
    error: RpcError | None
    served: bool = False


class Life:
    """`stop` may come at any time, from any task; `run` does the rest, once."""

    def __init__(
        self, source: WorkerSource, model: ModelConfig, config: WorkerConfig, handlers: Handlers, owner: Owner
    ) -> None:
        self._source = source
        self._model = model
        self._config = config
        self._handlers = handlers
        self._owner = owner
        self._stop_asked = trio.Event()
        self._now = trio.Event()
        self._load_error: RpcError | None = None
        self._state = WorkerState.SPAWNING

    def stop(self, *, at_once: bool) -> None:
        self._stop_asked.set()
        if at_once:
            self._now.set()

    def idle(self) -> None:
        """Nothing is in flight any more: what drains may stop."""
        if self._stop_asked.is_set():
            self._now.set()

    async def run(self) -> Ending:
        self._enter(WorkerState.SPAWNING)
        try:
            folder = await self._source.locate()
            async with self._source.spawn(self._handlers) as worker:
                self._owner.spawned(worker)
                try:
                    await self._serve(worker, folder)
                finally:
                    phase, self._state = self._state, WorkerState.STOPPING
                    self._owner.enter(WorkerState.STOPPING)
        except RpcError as error:
            return Ending(WorkerState.FAILED, error)
        except OSError as error:
            reason = f"cannot start a worker: {error.strerror}; check `worker.command` and the free memory"
            return Ending(WorkerState.FAILED, RpcError(ErrorKind.MODEL_LOAD_FAILED, reason))
        if self._load_error is not None:
            return Ending(WorkerState.FAILED, self._load_error)
        if self._stop_asked.is_set():
            return Ending(WorkerState.STOPPED, None)
        served = phase in (WorkerState.READY, WorkerState.DRAINING)
        return Ending(WorkerState.STOPPED, self._death(worker, phase), served)

    async def _serve(self, worker: Worker, folder: Path) -> None:
        """Until the worker is gone, its load has failed, or it is to stop and has nothing left to do."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_death, worker, nursery.cancel_scope)
            nursery.start_soon(self._watch_stop, nursery.cancel_scope)
            try:
                loaded = await self._load(worker, folder)
            except RpcError as error:
                self._load_error = error
                nursery.cancel_scope.cancel()
            except WorkerGoneError:
                # The watch sees it too, and ends this.
                await trio.sleep_forever()
            else:
                self._enter(WorkerState.READY)
                self._owner.ready(worker, loaded)
                await trio.sleep_forever()

    async def _load(self, worker: Worker, folder: Path) -> link.Loaded:
        try:
            with trio.fail_after(self._config.hello_timeout_s):
                await worker.wait_hello()
            self._enter(WorkerState.LOADING)
            with trio.fail_after(self._config.load_timeout_s):
                return await worker.call(link.LOAD, self._order(folder), link.Loaded)
        except trio.TooSlowError:
            key = "hello_timeout_s" if self._state is WorkerState.SPAWNING else "load_timeout_s"
            await worker.kill()
            raise RpcError(
                ErrorKind.MODEL_LOAD_FAILED,
                f"the worker was not ready in time and was ended; raise `worker.{key}` if it was only slow",
            ) from None

    def _order(self, folder: Path) -> link.Load:
        return link.Load(
            model_path=str(folder),
            context_tokens_max=self._model.context_tokens_max,
            batch_sequences_max=self._model.batch_sequences_max,
            prefill_chunk_tokens=self._model.prefill_chunk_tokens,
            float32=self._model.float32,
            wired_limit_bytes=self._config.wired_limit_bytes,
            cache_limit_bytes=self._config.cache_limit_bytes,
            heartbeat_interval_s=self._config.heartbeat_interval_s,
        )

    async def _watch_death(self, worker: Worker, serving: trio.CancelScope) -> None:
        await worker.gone.wait()
        serving.cancel()

    async def _watch_stop(self, serving: trio.CancelScope) -> None:
        await self._stop_asked.wait()
        if self._state is WorkerState.READY:
            self._enter(WorkerState.DRAINING)
            if self._owner.draining():
                await self._now.wait()
        serving.cancel()

    def _enter(self, state: WorkerState) -> None:
        self._state = state
        self._owner.enter(state)

    def _death(self, worker: Worker, phase: WorkerState) -> RpcError:
        if worker.returncode is None:
            return RpcError(ErrorKind.WORKER_DIED, "the worker did not end although it was killed")
        death = explain_death(worker.returncode, phase.value)
        _log.error("worker %d died: %s", worker.pid, describe_death(death))
        for line in worker.stderr.lines:
            _log.info("worker %d stderr: %s", worker.pid, line)
        why = f"; it broke the worker protocol: {worker.fault}" if worker.fault else ""
        return RpcError(ErrorKind.WORKER_DIED, f"the worker died: {describe_death(death)}{why}", death=death)
