"""One worker's life: hatched, loaded, served, watched, drained, stopped; and what is known at its end."""

import errno
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
import trio

from mlxsup.config.schema import Model as ModelConfig
from mlxsup.config.schema import Recovery
from mlxsup.config.schema import Worker as WorkerConfig
from mlxsup.protocol import worker_link as link
from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.self_test import Feature
from mlxsup.supervisor.lease.desk import LeaseDesk
from mlxsup.supervisor.pool.attempt import Attempt
from mlxsup.supervisor.pool.companions import Companions
from mlxsup.supervisor.pool.frame_pipes import LinkFaultError
from mlxsup.supervisor.pool.lifecycle import WorkerState
from mlxsup.supervisor.pool.output_bound import OutputBound
from mlxsup.supervisor.pool.process import Observation
from mlxsup.supervisor.pool.self_tests import SelfTests
from mlxsup.supervisor.pool.watch import Watch
from mlxsup.supervisor.pool.worker import Handlers, Worker, WorkerGoneError
from mlxsup.supervisor.recovery.classify import Evidence
from mlxsup.supervisor.recovery.limits import watchdog_limits
from mlxsup.supervisor.recovery.memory_truth import MemorySample
from mlxsup.supervisor.residency.residency import Weigh

_log = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

_PASSING_ERRORS = frozenset({errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_SERVING = frozenset({WorkerState.READY, WorkerState.DRAINING})


async def _alone() -> Companions:
    return Companions()


class WorkerSource(msgspec.Struct, frozen=True):
    """Where workers come from and how they are seen; a test hands in its own.

    `locate` gives the checked model folder or raises RpcError; `hatch` raises OSError; `observe` takes a pid;
    `available` is the memory that the machine has left, in bytes; `weigh` says what the weights take, None if it can't;
    `lease` is where those who share a GPU get their turns. `prefix_bytes_max` is what a worker may keep of beginnings that
    others share, in `prefix_folder` on the disk; `accompany` finds what else is loaded with the model, or raises RpcError.
    """

    locate: Callable[[], Awaitable[Path]]
    hatch: Callable[[], Awaitable[Worker]]
    observe: Callable[[int], Observation]
    available: Callable[[], int]
    weigh: Weigh
    lease: LeaseDesk = msgspec.field(default_factory=lambda: LeaseDesk("off"))
    prefix_bytes_max: Callable[[], int] = lambda: 0
    prefix_folder: Path | None = None
    accompany: Callable[[], Awaitable[Companions]] = _alone


class Owner(Protocol):
    """Whom a life tells what happens, at once; only the owner changes the model's state."""

    def enter(self, life: "Life", state: WorkerState) -> None: ...

    def report(self, life: "Life", progress: link.LoadProgress) -> None: ...

    def ready(self, life: "Life", loaded: link.Loaded) -> None: ...

    def take_step(self, life: "Life", step: link.Step) -> None: ...

    def take_answer(self, life: "Life", id: int, answer: link.Generated | RpcError) -> None: ...

    def question_answered(self) -> None: ...

    def sampled(self, life: "Life") -> None: ...

    def draining(self, life: "Life") -> bool:
        """Give it nothing new; whether it has anything to do yet."""
        ...

    def ending(self, life: "Life") -> None:
        """Start nothing more with it."""
        ...


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """How a life ended: asked for when both are None, else by a refused load, or by a death.

    `passing`: the machine had no room for another process, and may have it in a moment.
    """

    refusal: RpcError | None = None
    passing: bool = False
    death: Evidence | None = None
    why: str | None = None


class Life:
    """`stop` may come at any time, from any task; `run` does the rest, once."""

    def __init__(
        self,
        source: WorkerSource,
        model: ModelConfig,
        config: WorkerConfig,
        recovery: Recovery,
        owner: Owner,
        generation: int,
        self_tests: SelfTests,
        prefill_tokens_per_s: float | None = None,
    ) -> None:
        """`prefill_tokens_per_s` as measured with an earlier worker of the model, if there was one."""
        self._source = source
        self._model = model
        self._config = config
        self._recovery = recovery
        self._owner = owner
        self._self_tests = self_tests
        self._watch = Watch(watchdog_limits(config, recovery), source.observe, prefill_tokens_per_s)
        self._output = OutputBound()
        self._stop_asked = trio.Event()
        self._now = trio.Event()
        self._has_work = True
        self._refused: RpcError | None = None
        # By its own account: a GPU with memory of its own is not seen from outside.
        self._device_bytes = 0
        self.state = WorkerState.SPAWNING
        self.worker: Worker | None = None
        self.began_s = trio.current_time()
        self.ready_s: float | None = None
        self.generation = generation
        self.error: RpcError | None = None
        # As it was ordered, or has found itself.
        self.switched_off: list[Feature] = []
        self.loading = Attempt()
        self.over = trio.Event()

    # As the port of requests to the worker:

    def start(self, id: int, order: link.Order) -> None:
        assert self.worker is not None
        method = link.EMBED if isinstance(order, link.Embed) else link.GENERATE
        self.worker.send_request(id, method, order)
        self._output.grant(id, order)
        self._watch.watchdog.note_sent(trio.current_time())

    def cancel(self, id: int, *, goes_on: bool) -> None:
        assert self.worker is not None
        self.worker.send_notification(link.CANCEL, link.Cancel(id=id, goes_on=goes_on))

    def tune(
        self, *, batch_sequences_max: int | None = None, prefill_chunk_tokens: int | None = None
    ) -> None:
        """As `Worker.tune`."""
        assert self.worker is not None
        self.worker.tune(batch_sequences_max=batch_sequences_max, prefill_chunk_tokens=prefill_chunk_tokens)

    def switch_off(self, features: list[Feature]) -> None:
        assert self.worker is not None
        self.switched_off = features
        self.worker.send_notification(link.TUNE, link.Tune(switched_off=features))

    # As a member of those who share a GPU:

    def grant_lease(self) -> None:
        assert self.worker is not None
        self.worker.send_notification(link.LEASE_GRANT, link.LeaseTurn())

    def bound_lease(self, tokens_min: int) -> None:
        assert self.worker is not None
        self.worker.send_notification(link.TUNE, link.Tune(lease_tokens_min=tokens_min))

    async def call(self, method: str, params: Any, result_type: type[ResultT]) -> ResultT:
        """As `Worker.call`; a worker that does not take up a question is found as with a request."""
        assert self.worker is not None
        return await self.worker.call(
            method,
            params,
            result_type,
            on_sent=lambda: self._watch.watchdog.note_sent(trio.current_time()),
            on_answer=self._take_question_answer,
        )

    # For its owner:

    @property
    def questions(self) -> int:
        """So many that are no requests it has not answered, or had not at its end."""
        return 0 if self.worker is None else self.worker.questions

    @property
    def is_failing(self) -> bool:
        """It is ready no more, and its end has not been settled yet."""
        return self.worker is not None and self.worker.failing.is_set()

    def stop(self, *, at_once: bool) -> None:
        self._stop_asked.set()
        if at_once:
            self._now.set()

    def idle(self) -> None:
        """Nothing is in flight any more: what drains may stop. Before that it is still given something."""
        if self.state is WorkerState.DRAINING:
            self._has_work = False
            self._now.set()

    def conclude(self, error: RpcError) -> None:
        """It is over, and what it leaves behind is settled."""
        self.error = error
        self.loading.settle(error)
        self.over.set()

    @property
    def samples(self) -> list[MemorySample]:
        """Its memory curve, oldest first."""
        return self._watch.samples

    @property
    def held_bytes(self) -> int:
        """Of memory, as it was last known."""
        return max(self._device_bytes, self.samples[-1].resident_bytes if self.samples else 0)

    @property
    def prefill_tokens_per_s(self) -> float | None:
        """As measured, by this worker or an earlier one."""
        return self._watch.watchdog.prefill_tokens_per_s

    @property
    def stopping(self) -> bool:
        return self._stop_asked.is_set()

    async def run(self) -> Ending:
        self._enter(WorkerState.SPAWNING)
        try:
            folder = await self._source.locate()
            companions = await self._source.accompany()
            self.worker = worker = await self._source.hatch()
        except RpcError as error:
            return Ending(refusal=error)
        except OSError as error:
            reason = f"cannot start a worker: {error.strerror}; check `worker.command` and the free memory"
            refusal = RpcError(ErrorKind.MODEL_LOAD_FAILED, reason)
            return Ending(refusal=refusal, passing=error.errno in _PASSING_ERRORS)
        try:
            worker.adopt(self._handlers())
            await self._serve(worker, folder, companions)
        finally:
            phase, self.state = self.state, WorkerState.STOPPING
            self._source.lease.leave(self)
            ended_by_itself = worker.returncode is not None or worker.failing.is_set()
            self._owner.ending(self)
            self._owner.enter(self, WorkerState.STOPPING)
            await worker.stop()
        if self._refused is not None:
            return Ending(refusal=self._refused)
        # While it drains it may have requests, and a death takes them away as any other does. Without any it only ends a
        # moment before it is told to: who stops the supervisor may have sent all of its group the same signal.
        if self._stop_asked.is_set() and not (phase in _SERVING and ended_by_itself and self._has_work):
            return Ending()
        return Ending(death=self._evidence(worker, phase), why=self._why(worker))

    def _handlers(self) -> Handlers:
        return Handlers(
            step=self._take_step,
            answer=self._take_answer,
            progress=self._take_progress,
            heartbeat=self._take_beat,
            lease_ask=lambda ask: self._source.lease.ask(self, ask.urgency),
            lease_done=lambda: self._source.lease.done(self),
        )

    async def _serve(self, worker: Worker, folder: Path, companions: Companions) -> None:
        """Until the worker is gone, its load has failed, or it is to stop and has nothing left to do."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_failure, worker)
            nursery.start_soon(self._watch_death, worker, nursery.cancel_scope)
            nursery.start_soon(self._watch_stop, nursery.cancel_scope)
            try:
                loaded = await self._load(worker, folder, companions, nursery)
            except RpcError as error:
                self._refused = error
                nursery.cancel_scope.cancel()
            except WorkerGoneError:
                # The watch of its death sees it too, and ends this.
                await trio.sleep_forever()
            else:
                if not self._stop_asked.is_set() and self._watch.stall is None:
                    self.ready_s = trio.current_time()
                    self._output.context_tokens = loaded.context_tokens
                    self._enter(WorkerState.READY)
                    self._source.lease.join(self, "" if worker.hello is None else worker.hello.device)
                    self._owner.ready(self, loaded)
                await trio.sleep_forever()

    async def _load(
        self, worker: Worker, folder: Path, companions: Companions, nursery: trio.Nursery
    ) -> link.Loaded:
        try:
            with trio.fail_after(self._config.hello_timeout_s):
                await worker.wait_hello()
            self._enter(WorkerState.LOADING)
            nursery.start_soon(self._watch_progress, worker)
            with trio.fail_after(self._config.load_timeout_s):
                return await worker.call(link.LOAD, self._order(folder, companions), link.Loaded)
        except trio.TooSlowError:
            key = "hello_timeout_s" if self.state is WorkerState.SPAWNING else "load_timeout_s"
            await worker.end_stalled()
            raise RpcError(
                ErrorKind.MODEL_LOAD_FAILED,
                f"the worker was not ready in time and was ended; raise `worker.{key}` if it was only slow",
            ) from None

    def _order(self, folder: Path, companions: Companions) -> link.Load:
        self.switched_off = self._self_tests.switched_off
        return link.Load(
            model_path=str(folder),
            context_tokens_max=self._model.context_tokens_max,
            batch_sequences_max=self._model.batch_sequences_max,
            prefill_chunk_tokens=self._model.prefill_chunk_tokens,
            float32=self._model.float32,
            wired_limit_bytes=self._config.wired_limit_bytes,
            cache_limit_bytes=self._config.cache_limit_bytes,
            parked_bytes_max=self._config.parked_bytes_max,
            prefill_target_s=self._model.prefill_target_s,
            prefill_tokens_per_s=self.prefill_tokens_per_s,
            prefix_bytes_max=self._source.prefix_bytes_max(),
            prefix_folder=None if self._source.prefix_folder is None else str(self._source.prefix_folder),
            prefix_disk_bytes_max=self._model.prefix_disk_bytes_max,
            prefix_disk_tokens_min=self._model.prefix_disk_tokens_min,
            kv_bits=self._model.kv_bits,
            grammar_compile_s=self._config.grammar_compile_s,
            lookup=self._model.lookup,
            draft_path=None if companions.draft is None else str(companions.draft),
            adapters={name: str(path) for name, path in companions.adapters.items()},
            adapters_bytes_max=self._model.adapters_bytes_max,
            self_test=self._model.self_test and self._self_tests.last is None,
            switched_off=self.switched_off,
            images_max=self._model.images_max,
            image_bytes_max=self._model.image_bytes_max,
            image_pixels_max=self._model.image_pixels_max,
            heartbeat_interval_s=self._config.heartbeat_interval_s,
        )

    async def _watch_failure(self, worker: Worker) -> None:
        """Who asks in the moments between this and its death is none of those whom it takes away."""
        await worker.failing.wait()
        self._source.lease.leave(self)
        self._owner.ending(self)

    async def _watch_death(self, worker: Worker, serving: trio.CancelScope) -> None:
        await worker.gone.wait()
        serving.cancel()

    async def _watch_stop(self, serving: trio.CancelScope) -> None:
        await self._stop_asked.wait()
        if self.state is WorkerState.READY:
            self._enter(WorkerState.DRAINING)
            self._has_work = self._owner.draining(self)
            if self._has_work:
                await self._now.wait()
        serving.cancel()

    async def _watch_progress(self, worker: Worker) -> None:
        stall = await self._watch.run(worker.pid, lambda: self._owner.sampled(self))
        _log.error(
            "worker %d is stuck while %s: %s (%.1f s are allowed)",
            worker.pid,
            self.state,
            stall.reason,
            stall.budget_s,
        )
        await worker.end_stalled()

    def _take_step(self, step: link.Step) -> None:
        self._watch.watchdog.note_frame(trio.current_time())
        if self._output.is_exceeded(step):
            raise LinkFaultError("it generated more than it was asked for")
        self._source.lease.stepped(self)
        self._owner.take_step(self, step)

    def _take_answer(self, id: int, answer: link.Generated | RpcError) -> None:
        self._watch.watchdog.note_answer(trio.current_time())
        if self._output.is_other_than_asked(id, answer):
            raise LinkFaultError("it answered with other embeddings than it was asked for")
        self._output.end(id)
        if self._output.is_empty:
            self._source.lease.idle(self)
        self._owner.take_answer(self, id, answer)

    def _take_question_answer(self) -> None:
        self._watch.watchdog.note_answer(trio.current_time())
        self._owner.question_answered()

    def _take_progress(self, progress: link.LoadProgress) -> None:
        self._watch.watchdog.note_frame(trio.current_time())
        if progress.phase == "warm" and self.state is WorkerState.LOADING:
            self._enter(WorkerState.WARMING)
        self._owner.report(self, progress)

    def _take_beat(self, beat: link.Heartbeat) -> None:
        self._device_bytes = beat.active_bytes + beat.cache_bytes
        self._watch.watchdog.note_heartbeat(beat, trio.current_time())

    def _enter(self, state: WorkerState) -> None:
        self.state = state
        self._owner.enter(self, state)

    def _evidence(self, worker: Worker, phase: WorkerState) -> Evidence:
        return Evidence(
            # A process that the kernel holds for ever has no status; SIGKILL was sent.
            returncode=-9 if worker.returncode is None else worker.returncode,
            stderr=worker.stderr.lines,
            old_lines=worker.old_stderr_lines,
            phase=phase.value,
            stalled=self._watch.stall is not None,
            stopped=self._watch.stall is not None and self._watch.stall.stopped,
            broke_protocol=worker.fault is not None,
            origin=worker.origin,
            killed_for_memory=worker.killed_for_memory,
        )

    def _why(self, worker: Worker) -> str | None:
        if self._watch.stall is not None:
            return self._watch.stall.reason
        return f"it broke the worker protocol: {worker.fault}" if worker.fault else None
