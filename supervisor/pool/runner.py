"""The one owner of a model: its door, its requests, and the succession of its workers.

Nobody asks for a state in order to act on it: they `submit`, or `ensure_ready`, and the runner decides.
"""

import random
from typing import Any, TypeVar

import msgspec
import trio

from mlxsup.config.schema import Model as ModelConfig
from mlxsup.config.schema import Recovery, Scheduling
from mlxsup.config.schema import Worker as WorkerConfig
from mlxsup.protocol import worker_link as link
from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import Priority
from mlxsup.protocol.self_test import SelfTestResult
from mlxsup.protocol.service import Activity, LoadOptions
from mlxsup.supervisor.events import EventBus
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.pool.attempt import OnProgress
from mlxsup.supervisor.pool.casualties import Casualties, Witness
from mlxsup.supervisor.pool.life import Life, WorkerSource
from mlxsup.supervisor.pool.lifecycle import WorkerState
from mlxsup.supervisor.pool.questions import Questions
from mlxsup.supervisor.pool.self_tests import SelfTests
from mlxsup.supervisor.pool.standing import Standing
from mlxsup.supervisor.pool.succession import Succession
from mlxsup.supervisor.pool.unavailable import stopped_error
from mlxsup.supervisor.recovery.breaker import BreakerState, CircuitBreaker
from mlxsup.supervisor.recovery.gate import Gate
from mlxsup.supervisor.recovery.limits import breaker_limits, restart_limits
from mlxsup.supervisor.recovery.poison import PoisonWatch
from mlxsup.supervisor.recovery.restart_policy import RestartPolicy
from mlxsup.supervisor.residency.residency import Residency
from mlxsup.supervisor.scheduling.scheduler import Scheduler

ResultT = TypeVar("ResultT")
_TICK_S = 0.5


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """How things stand, for display only: whoever wants to act tells the runner."""

    state: WorkerState
    reason: str | None
    pid: int | None
    generation: int
    pinned: bool
    breaker: BreakerState
    hello: link.Hello | None
    self_test: SelfTestResult | None


class ModelRunner:
    def __init__(
        self,
        name: str,
        model: ModelConfig,
        config: WorkerConfig,
        recovery: Recovery,
        scheduling: Scheduling,
        source: WorkerSource,
        events: EventBus,
        *,
        witness: Witness,
        machine: CircuitBreaker,
        poison: PoisonWatch,
        rng: random.Random,
        residency: Residency,
    ) -> None:
        self.name = name
        self._configured = model
        self._pinned = model.pin
        self._poison = poison
        self._reservation = residency.reserve(name, model, source.weigh)
        policy = RestartPolicy(restart_limits(recovery), rng.uniform)
        self.gate = Gate(CircuitBreaker(breaker_limits(recovery)), machine, poison, recovery.suspect_tokens)
        self._scheduler = Scheduler(
            model,
            scheduling,
            poison=poison,
            on_end=self._request_ended,
        )
        self._busy = trio.Event()
        self._standing = Standing(name, events)
        self._self_tests = SelfTests(name, events, self._apply_self_test)
        self._workers = Succession(
            name,
            model,
            config,
            recovery,
            source,
            standing=self._standing,
            scheduler=self._scheduler,
            gate=self.gate,
            policy=policy,
            casualties=Casualties(
                name,
                self._scheduler,
                self.gate,
                policy,
                poison,
                witness,
                fruitless_resumes_max=recovery.fruitless_resumes_max,
                crowded_s=recovery.restart_healthy_s,
            ),
            reservation=self._reservation,
            self_tests=self._self_tests,
        )
        self._next = self._workers.next
        self._questions = Questions(model, self._scheduler, self.gate, self.ensure_ready)

    async def run(self) -> None:
        """Have a worker whenever one is wanted; until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_time)
            await self._workers.run()

    async def _watch_time(self) -> None:
        while True:
            await self._busy.wait()
            while not self._scheduler.is_idle:
                await trio.sleep(_TICK_S)
                self._scheduler.on_tick(trio.current_time())
            self._busy = trio.Event()

    # What others see.

    def snapshot(self) -> Snapshot:
        life = self._workers.current
        worker = None if life is None else life.worker
        return Snapshot(
            state=self._standing.state,
            reason=self._standing.reason,
            pid=worker.pid if worker else None,
            generation=self._workers.generation,
            pinned=self._pinned,
            breaker=self.gate.breaker_state(trio.current_time()),
            hello=worker.hello if worker else None,
            self_test=self._self_tests.last,
        )

    @property
    def queued(self) -> int:
        return self._scheduler.queued

    def queued_by_priority(self) -> dict[str, int]:
        return self._scheduler.queued_by_priority()

    def activity(self) -> Activity:
        return Activity(
            running=self._scheduler.running_by_priority(),
            queued=self._scheduler.queued_by_priority(),
            queued_again=self._scheduler.queued_again,
            reserved_bytes=self._reservation.bytes,
            residency=self._reservation.phase.value,
            quarantined_requests=self._poison.count_quarantined(self.name),
        )

    # What policies want.

    def shed(self, tier: Priority, away_s: float | None) -> None:
        """Refuse newcomers of a tier, for `away_s` at least, and end those of it that wait; None: no more."""
        self._scheduler.shed(tier, away_s, trio.current_time())

    def limit_batch(self, sequences_max: int | None) -> None:
        """Compute no more requests together than that; None: than is configured."""
        self._scheduler.limit_batch(sequences_max, trio.current_time())

    def tune_prefill(self, chunk_tokens: int | None) -> None:
        """Compute so many tokens of prompts between two steps of decoding; None: as is configured."""
        self._workers.tune_prefill(chunk_tokens)

    # What others want.

    def submit(self, request: GenerationRequest) -> None:
        """Take the request over: from here on it ends through its sink.

        Raises:
            RpcError: it is refused, and was never accepted.
        """
        if self._next.closing is not None:
            raise self._next.closing
        now_s = trio.current_time()
        self.gate.enter(request, now_s)
        try:
            self._scheduler.on_request(request, now_s)
        except RpcError as error:
            self.gate.left(request, error, now_s)
            raise
        self._busy.set()
        self._next.want()

    def cancel(self, request: GenerationRequest) -> None:
        self._scheduler.on_cancel(request, trio.current_time())

    def expire(self, request: GenerationRequest) -> None:
        self._scheduler.on_deadline(request, trio.current_time())

    async def ensure_ready(self, on_progress: OnProgress | None = None) -> Life:
        """The life that serves, begun if need be.

        Raises:
            RpcError: it can't be had, or the supervisor is shutting down.
        """
        while self._standing.state is not WorkerState.READY or self._workers.current is None:
            error = self._next.closing or self.gate.why_shut(trio.current_time())
            if error is not None:
                raise error
            attempt = self._standing.attempt
            self._next.want()
            await attempt.wait(on_progress)
        return self._workers.current

    async def load(
        self, *, pin: bool | None, options: LoadOptions | None, on_progress: OnProgress, forgive: bool = True
    ) -> None:
        """By hand: as `ensure_ready`, and with `forgive` what was held against the model is forgotten.

        A worker that was loaded with other options than these is replaced. An option that is not given is as
        configured, and none goes beyond that.
        """
        if pin is not None:
            self._pinned = pin
            self._reservation.pin(pinned=pin)
        if options is not None:
            bounds = [options.context_tokens_max, self._configured.context_tokens_max]
            bound = min((tokens for tokens in bounds if tokens is not None), default=None)
            await self._workers.use(msgspec.structs.replace(self._configured, context_tokens_max=bound))
        if forgive:
            self._next.forgive()
            if self._workers.current is None:
                self._self_tests.forget()
        await self.ensure_ready(on_progress)

    async def self_test(self, on_progress: OnProgress | None = None) -> SelfTestResult:
        """Test the worker, which is begun if need be.

        Raises:
            RpcError: as `call`; UNSUPPORTED where the engine has no test.
        """
        count = self._self_tests.count
        await self.ensure_ready(on_progress)
        if self._self_tests.count == count or self._self_tests.last is None:
            # Else it has just been tested as it was loaded.
            self._self_tests.note(await self.call(link.SELF_TEST, link.SelfTest(), SelfTestResult))
        assert self._self_tests.last is not None
        return self._self_tests.last

    def _apply_self_test(self) -> None:
        alone = "batch" in self._self_tests.switched_off
        self._scheduler.keep_alone(trio.current_time(), alone=alone)

    async def unload(self, *, force: bool) -> None:
        """End the worker: after its requests, or at once with `force`."""
        if self._pinned and not force:
            raise RpcError(
                ErrorKind.INVALID_PARAMS, "this model is pinned: unload it with `force`", path="$.force"
            )
        self._pinned = False
        self._reservation.pin(pinned=False)
        self._next.let_go(stopped_error() if force else None)
        await self._workers.stop(at_once=force)
        self._next.rest()

    def forgive(self) -> set[str]:
        """Let quarantined requests try again; their digests."""
        return self._poison.release(self.name)

    async def recycle(self, on_progress: OnProgress | None = None) -> None:
        """Replace the worker without losing anything; returns once the new one serves.

        Raises:
            RpcError: no other one can be had; then the old one goes on where it still can.
        """
        await self._workers.drained()
        old = self._workers.current
        if old is not None and self._standing.state is WorkerState.READY:
            successor = self._workers.replace(old)
            if successor is not None:
                await successor.loading.wait(on_progress)
                return
            await old.over.wait()
        await self.ensure_ready(on_progress)

    async def call(self, method: str, params: Any, result_type: type[ResultT]) -> ResultT:
        """As `Questions.call`."""
        return await self._questions.call(method, params, result_type)

    async def close(self, drain_s: float, hurry: trio.Event) -> None:
        """Accept nothing more, let what runs end within `drain_s` or until `hurry`, then end the workers."""
        error = RpcError(ErrorKind.SHUTTING_DOWN, "the supervisor is shutting down")
        self._next.close(error)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._stop_after, drain_s, hurry)
            await self._workers.stop(at_once=False)
            nursery.cancel_scope.cancel()
        self._next.rest()

    async def _stop_after(self, drain_s: float, hurry: trio.Event) -> None:
        with trio.move_on_after(drain_s):
            await hurry.wait()
        await self._workers.stop(at_once=True)

    def _request_ended(self, request: GenerationRequest, error: RpcError | None) -> None:
        self.gate.left(request, error, trio.current_time())
        self._workers.request_ended(request)
