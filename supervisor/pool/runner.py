"""The one owner of a model: of its state, its requests, and one worker's life after the other.

Nobody asks for a state in order to act on it: they `submit`, or `ensure_ready`, and the runner decides. A worker is
started when something wants the model, and started again when it dies, as the restart policy says, until the model is
unloaded. Whoever waits for it is settled when its load resolves, however it does; what a worker had in flight when it
ended is settled then: it goes on in the next one, or ends with the death that took it.

When a worker is recycled two live at a time: the successor loads while the old one goes on, and takes over when it is
ready; then the old one drains.
"""

import logging
import math
import random
from typing import Any, Protocol, TypeVar

import msgspec
import trio

from mlxsup.config.schema import Model as ModelConfig
from mlxsup.config.schema import Recovery
from mlxsup.config.schema import Worker as WorkerConfig
from mlxsup.protocol import worker_link as link
from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.service import LoadOptions
from mlxsup.supervisor.events import EventBus
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.pool.attempt import Attempt, OnProgress
from mlxsup.supervisor.pool.life import Ending, Life, WorkerSource
from mlxsup.supervisor.pool.lifecycle import FOLLOWS, WorkerState
from mlxsup.supervisor.pool.request_book import RequestBook
from mlxsup.supervisor.pool.worker import WorkerGoneError
from mlxsup.supervisor.recovery.aftermath import Aftermath, decide_aftermath
from mlxsup.supervisor.recovery.breaker import BreakerLimits, BreakerState, CircuitBreaker
from mlxsup.supervisor.recovery.classify import Evidence, Restart
from mlxsup.supervisor.recovery.gate import Gate
from mlxsup.supervisor.recovery.memory_truth import (
    MemoryLimits,
    MemorySample,
    judge_memory,
    leak_bytes_per_hour,
)
from mlxsup.supervisor.recovery.poison import PoisonWatch, QuarantinedRequest
from mlxsup.supervisor.recovery.restart_policy import RestartLimits, RestartPolicy

_log = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")
# A slope over fewer says more of the last request than of a leak.
_LEAK_SAMPLES_MIN = 120


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """How things stand, for display only: whoever wants to act tells the runner."""

    state: WorkerState
    reason: str | None
    pid: int | None
    generation: int
    pinned: bool
    breaker: BreakerState
    hello: link.Hello | None


class Witness(Protocol):
    """Is told of each death and of each request that is quarantined, at once."""

    def worker_died(self, model: str, life: Life, evidence: Evidence, aftermath: Aftermath) -> None: ...

    def request_quarantined(self, entry: QuarantinedRequest) -> None: ...


class ModelRunner:
    def __init__(
        self,
        name: str,
        model: ModelConfig,
        config: WorkerConfig,
        recovery: Recovery,
        source: WorkerSource,
        events: EventBus,
        *,
        witness: Witness,
        machine: CircuitBreaker,
        poison: PoisonWatch,
        rng: random.Random,
    ) -> None:
        self.name = name
        self._configured = self._model = model
        self._config = config
        self._recovery = recovery
        self._source = source
        self._events = events
        self._witness = witness
        self._poison = poison
        self._policy = RestartPolicy(_restart_limits(recovery), rng.uniform)
        self.gate = Gate(CircuitBreaker(breaker_limits(recovery)), machine, poison)
        self._book = RequestBook(
            batch_sequences_max=model.batch_sequences_max,
            queue_requests_max=model.queue_requests_max,
            poison=poison,
            on_end=self._request_ended,
        )
        self._state = WorkerState.STOPPED
        self._reason: str | None = None
        self._generation = 0
        self._pinned = model.pin
        self._attempt = Attempt()
        self._wanted = trio.Event()
        # Once wanted, a model is kept: a worker that dies is replaced, also while nobody asks for anything.
        self._keep = False
        self._not_before_s = -math.inf
        self._hurry = trio.Event()
        self._no_recycle_before_s = -math.inf
        self._last_sample: MemorySample | None = None
        self._lives: set[Life] = set()
        self._life: Life | None = None
        self._successor: Life | None = None
        self._served_requests = 0
        self._served_tokens = 0
        self._closing: RpcError | None = None

    # What others see.

    def snapshot(self) -> Snapshot:
        worker = self._life.worker if self._life is not None else None
        return Snapshot(
            state=self._state,
            reason=self._reason,
            pid=worker.pid if worker else None,
            generation=self._current_generation,
            pinned=self._pinned,
            breaker=self.gate.breaker_state(trio.current_time()),
            hello=worker.hello if worker else None,
        )

    @property
    def _current_generation(self) -> int:
        return self._generation if self._life is None else self._life.generation

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
        now_s = trio.current_time()
        admission = self.gate.check(self.name, request.order, now_s)
        try:
            self._book.submit(request, now_s)
        except RpcError:
            self.gate.turned_away(admission, now_s)
            raise
        self.gate.entered(request, admission)
        self._want()

    def cancel(self, request: GenerationRequest) -> None:
        self._book.cancel(request, trio.current_time())

    def expire(self, request: GenerationRequest) -> None:
        self._book.expire(request, trio.current_time())

    async def ensure_ready(self, on_progress: OnProgress | None = None) -> Life:
        """The life that serves, begun if need be.

        Raises:
            RpcError: it can't be had, or the supervisor is shutting down.
        """
        while self._state is not WorkerState.READY or self._life is None:
            error = self._closing or self.gate.why_shut(trio.current_time())
            if error is not None:
                raise error
            attempt = self._attempt
            self._want()
            await attempt.wait(on_progress)
        return self._life

    async def load(self, *, pin: bool | None, options: LoadOptions | None, on_progress: OnProgress) -> None:
        """By hand: as `ensure_ready`, and what was held against the model is forgiven.

        A worker that was loaded with other options than these is replaced. An option that is not given is as
        configured, and none goes beyond that.
        """
        if pin is not None:
            self._pinned = pin
        if options is not None:
            bounds = [options.context_tokens_max, self._configured.context_tokens_max]
            bound = min((tokens for tokens in bounds if tokens is not None), default=None)
            model = msgspec.structs.replace(self._model, context_tokens_max=bound)
            if model != self._model:
                self._model = model
                await self._stop(at_once=False)
        self._policy.forgive()
        self.gate.open()
        self._not_before_s = -math.inf
        self._hurry.set()
        await self.ensure_ready(on_progress)

    async def unload(self, *, force: bool) -> None:
        """End the worker: after its requests, or at once with `force`."""
        if self._pinned and not force:
            raise RpcError(
                ErrorKind.INVALID_PARAMS, "this model is pinned: unload it with `force`", path="$.force"
            )
        self._pinned = False
        self._keep = False
        if force:
            self._book.fail_queued(_stopped_error())
        await self._stop(at_once=force)
        self._rest()

    async def recycle(self) -> None:
        """Replace the worker without losing anything; returns once the new one serves.

        Raises:
            RpcError: no other one can be had; then the old one goes on where it still can.
        """
        old = self._life
        if old is not None and self._state is WorkerState.READY:
            successor = self._replace(old)
            if successor is not None:
                await successor.ready_or_over.wait()
                if successor.error is not None:
                    raise successor.error
                return
            await old.over.wait()
        await self.ensure_ready()

    async def call(self, method: str, params: Any, result_type: type[ResultT]) -> ResultT:
        """A question to the worker that is no generation. Asked again if its worker dies: it changes nothing."""
        while True:
            life = await self.ensure_ready()
            assert life.worker is not None
            try:
                return await life.worker.call(method, params, result_type)
            except WorkerGoneError:
                await life.over.wait()

    async def close(self, drain_s: float, hurry: trio.Event) -> None:
        """Accept nothing more, let what runs end within `drain_s` or until `hurry`, then end the workers."""
        self._closing = RpcError(ErrorKind.SHUTTING_DOWN, "the supervisor is shutting down")
        self._keep = False
        self._book.fail_queued(self._closing)
        self._attempt.settle(self._closing)
        self._hurry.set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._stop_after, drain_s, hurry)
            await self._stop(at_once=False)
            nursery.cancel_scope.cancel()
        self._rest()

    async def _stop_after(self, drain_s: float, hurry: trio.Event) -> None:
        with trio.move_on_after(drain_s):
            await hurry.wait()
        await self._stop(at_once=True)

    async def _stop(self, *, at_once: bool) -> None:
        for life in tuple(self._lives):
            life.stop(at_once=at_once)
        for life in tuple(self._lives):
            await life.over.wait()

    def _want(self) -> None:
        self._keep = True
        self._wanted.set()

    def _is_wanted(self) -> bool:
        if self._closing is not None:
            return False
        return self._keep or self._book.queued > 0 or self._attempt.waiters > 0

    def _rest(self) -> None:
        """Wait for no restart that nobody wants any more."""
        if self._state is WorkerState.BACKOFF and not self._is_wanted():
            self._enter(WorkerState.STOPPED, None)

    # One life after the other.

    async def run(self) -> None:
        """Begin a life whenever one is wanted and none is there; until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            while True:
                await self._wanted.wait()
                self._wanted = trio.Event()
                if self._life is None and self._closing is None:
                    await self._wait_turn()
                    if self._may_begin():
                        self._life = self._begin()

    async def _wait_turn(self) -> None:
        self._hurry = trio.Event()
        with trio.move_on_at(self._not_before_s):
            await self._hurry.wait()

    def _may_begin(self) -> bool:
        if not self._is_wanted():
            self._rest()
            return False
        limits = MemoryLimits(
            stranded_share=self._recovery.stranded_share, headroom_bytes=self._recovery.headroom_bytes
        )
        stranded = judge_memory(self._last_sample, self._source.available(), limits)
        if stranded is None:
            return True
        self._give_up(
            WorkerState.FAILED, RpcError(ErrorKind.MODEL_LOAD_FAILED, str(stranded), retriable=True)
        )
        return False

    def _begin(self) -> Life:
        self._generation += 1
        life = Life(self._source, self._model, self._config, self._recovery, self)
        life.generation = self._generation
        self._lives.add(life)
        self._nursery.start_soon(self._live, life)
        return life

    async def _live(self, life: Life) -> None:
        ending = None
        try:
            ending = await life.run()
        finally:
            self._conclude(life, ending or Ending())

    def _conclude(self, life: Life, ending: Ending) -> None:
        """Settle what the life leaves behind, and decide what comes next."""
        now_s = trio.current_time()
        self._lives.discard(life)
        was_current, was_successor = life is self._life, life is self._successor
        if was_current:
            self._life = None
            self._last_sample = life.samples[-1] if life.samples else self._last_sample
        if was_successor:
            self._successor = None
            self._no_recycle_before_s = now_s + self._recovery.restart_backoff_max_s
        lost = self._book.lose_worker(life, now_s)
        if ending.death is not None:
            life.error = self._after_death(
                life, ending.death, ending.why, lost, now_s, was_current=was_current
            )
        else:
            self._after_end(ending.refusal, lost, was_current=was_current)
            life.error = ending.refusal or _stopped_error()
        life.ready_or_over.set()
        life.over.set()

    def _after_end(
        self, refusal: RpcError | None, lost: list[GenerationRequest], *, was_current: bool
    ) -> None:
        for request in lost:
            self._book.fail(request, self._closing or _stopped_error())
        if not was_current:
            if refusal is not None:
                _log.error("%s: the new worker can't be had, the old one goes on: %s", self.name, refusal)
            return
        if refusal is not None:
            self._give_up(WorkerState.FAILED, refusal)
            return
        self._enter(WorkerState.STOPPED, None)
        if self._is_wanted():
            self._want()

    def _after_death(
        self,
        life: Life,
        evidence: Evidence,
        why: str | None,
        lost: list[GenerationRequest],
        now_s: float,
        *,
        was_current: bool,
    ) -> RpcError:
        aftermath = decide_aftermath(
            evidence,
            why,
            lost,
            poison=self._poison,
            policy=self._policy,
            another=bool(self._life or self._successor) or self._state is WorkerState.BACKOFF,
            now_s=now_s,
        )
        verdict = aftermath.verdict
        _log.error("%s: the worker died: %s: %s", self.name, aftermath.reason, aftermath.action)
        self.gate.worker_died(counts=verdict.weight > 0, machine=verdict.machine, now_s=now_s)
        self._witness.worker_died(self.name, life, evidence, aftermath)
        for request in aftermath.quarantined:
            self._quarantine(request, aftermath)
        for request in aftermath.failed:
            self._book.fail(request, aftermath.error)
        nowhere = self._closing or self.gate.why_shut(now_s)
        if nowhere is not None:
            for request in aftermath.resumed:
                self._book.fail(request, nowhere)
        else:
            self._book.resume(aftermath.resumed, now_s)
        if was_current:
            self._go_on(aftermath, now_s)
        elif self._life is None and self._book.queued:
            # It had been replaced, and who replaced it is gone, too.
            self._want()
        return aftermath.error

    def _go_on(self, aftermath: Aftermath, now_s: float) -> None:
        """After the death of the worker that served."""
        if self._successor is not None:
            self._promote(self._successor)
        elif aftermath.wait_s is None:
            never = aftermath.verdict.restart is Restart.NEVER
            state = WorkerState.FAILED if never else WorkerState.QUARANTINED
            self._give_up(state, _down_error(state, aftermath))
        elif self._is_wanted():
            self._not_before_s = now_s + aftermath.wait_s
            self._enter(WorkerState.BACKOFF, aftermath.reason)
            self._want()
        else:
            self._not_before_s = now_s + aftermath.wait_s
            self._enter(WorkerState.STOPPED, None)

    def _promote(self, successor: Life) -> None:
        """The old worker died while its successor loads: that one is the model's worker now."""
        self._life, self._successor = successor, None
        self._state, self._reason = successor.state, None
        self._publish()

    def _quarantine(self, request: GenerationRequest, aftermath: Aftermath) -> None:
        entry = self._poison.find(self.name, request.order)
        if entry is not None:
            self._witness.request_quarantined(entry)
        self._book.fail(
            request,
            RpcError(
                ErrorKind.QUARANTINED,
                f"this request was in flight when two workers died and is refused from now on; {aftermath.reason}",
                death=aftermath.death,
            ),
        )

    def _give_up(self, state: WorkerState, error: RpcError) -> None:
        """No worker can be had: whoever waits is told why, and so is whoever comes soon."""
        self._keep = False
        self._not_before_s = -math.inf
        until_s = math.inf
        if state is WorkerState.FAILED:
            until_s = trio.current_time() + self._recovery.failed_hold_s
        self.gate.shut(error, until_s)
        self._book.fail_queued(error)
        attempt, self._attempt = self._attempt, Attempt()
        attempt.settle(error)
        self._enter(state, error.message)

    def _enter(self, state: WorkerState, reason: str | None) -> None:
        assert state is self._state or state in FOLLOWS[self._state], f"{self._state} to {state}"
        self._state, self._reason = state, reason
        _log.info("%s: %s%s", self.name, state, f" ({reason})" if reason else "")
        self._publish()

    def _publish(self) -> None:
        self._events.publish(
            "worker", self.name, self._state, generation=self._current_generation, reason=self._reason
        )

    # What its lives tell.

    def enter(self, life: Life, state: WorkerState) -> None:
        if life is self._life:
            self._enter(state, None)

    def report(self, life: Life, progress: link.LoadProgress) -> None:
        if life is self._life:
            self._attempt.report(progress)

    def ready(self, life: Life, loaded: link.Loaded) -> None:
        megabytes = loaded.weights_bytes // 10**6
        _log.info("%s: loaded in %.1f s, %d MB of weights", self.name, loaded.load_s, megabytes)
        now_s = trio.current_time()
        self._policy.note_ready(now_s)
        self._served_requests = self._served_tokens = 0
        if life is self._successor:
            old, self._life, self._successor = self._life, life, None
            assert old is not None
            self._enter(WorkerState.READY, None)
            old.stop(at_once=False)
        # Who comes from now on and does not find it ready, because it drains, waits for the next.
        attempt, self._attempt = self._attempt, Attempt()
        attempt.settle(None)
        self._book.gain_worker(life, life.generation, now_s)
        life.ready_or_over.set()

    def take_step(self, life: Life, step: link.Step) -> None:
        self._book.take_step(life, step, trio.current_time())

    def take_answer(self, life: Life, id: int, answer: link.Generated | RpcError) -> None:
        self._book.take_answer(life, id, answer, trio.current_time())
        if not self._book.in_flight(life):
            life.idle()

    def draining(self, life: Life) -> bool:
        self._book.pause(life)
        return bool(self._book.in_flight(life))

    def sampled(self, life: Life) -> None:
        bound = self._recovery.leak_bytes_per_hour_max
        if bound is None:
            return
        samples = life.serving_samples
        if len(samples) >= _LEAK_SAMPLES_MIN and leak_bytes_per_hour(samples) > bound:
            self._recycle_soon(life, "it leaks")

    def _request_ended(self, request: GenerationRequest, error: RpcError | None) -> None:
        self.gate.left(request, error, trio.current_time())
        self._served_requests += 1
        self._served_tokens += len(request.tokens)
        recovery = self._recovery
        if recovery.recycle_requests is not None and self._served_requests >= recovery.recycle_requests:
            self._recycle_soon(self._life, "it has served its requests")
        elif recovery.recycle_tokens is not None and self._served_tokens >= recovery.recycle_tokens:
            self._recycle_soon(self._life, "it has served its tokens")

    def _recycle_soon(self, life: Life | None, why: str) -> None:
        serves = life is not None and life is self._life and self._state is WorkerState.READY
        if not serves or self._successor is not None or trio.current_time() < self._no_recycle_before_s:
            return
        assert life is not None
        _log.info("%s: recycling the worker: %s", self.name, why)
        self._replace(life)

    def _replace(self, old: Life) -> Life | None:
        """Another one takes over from the worker that serves; None when `old` has to end first."""
        if self._successor is not None:
            return self._successor
        needed = (old.samples[-1].resident_bytes if old.samples else 0) + self._recovery.headroom_bytes
        if self._source.available() < needed:
            _log.info("%s: not enough memory for two workers: draining first", self.name)
            old.stop(at_once=False)
        elif not old.stopping:
            self._successor = self._begin()
        return self._successor


def _stopped_error() -> RpcError:
    return RpcError(ErrorKind.CANCELLED, "the model was unloaded meanwhile", retriable=True)


def _down_error(state: WorkerState, aftermath: Aftermath) -> RpcError:
    if state is WorkerState.FAILED:
        return RpcError(
            ErrorKind.MODEL_LOAD_FAILED, f"the worker can't run: {aftermath.reason}", death=aftermath.death
        )
    return RpcError(
        ErrorKind.CIRCUIT_OPEN,
        f"this model is quarantined, its workers died too often; the last: {aftermath.reason}; load it by hand with "
        "`mlxsup load` when that is mended",
        retriable=False,
        death=aftermath.death,
    )


def _restart_limits(recovery: Recovery) -> RestartLimits:
    return RestartLimits(
        backoff_base_s=recovery.restart_backoff_base_s,
        backoff_max_s=recovery.restart_backoff_max_s,
        healthy_s=recovery.restart_healthy_s,
        restarts_max=recovery.restarts_max,
        window_s=recovery.restart_window_s,
    )


def breaker_limits(recovery: Recovery) -> BreakerLimits:
    """Also the machine's: a share of faults says nothing there, since good ends are not counted."""
    return BreakerLimits(
        consecutive_max=recovery.breaker_deaths,
        sample_min=max(5, recovery.breaker_deaths),
        open_s=recovery.breaker_open_s,
        open_max_s=recovery.breaker_open_max_s,
    )
