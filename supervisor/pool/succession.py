"""One worker's life after the other, and two at a time while one replaces the other.

Rule 1: a life is begun when something wants the model, and again when a worker dies, as the restart policy says, until
the model is unloaded. Rule 2: whoever waits for a worker is settled when its load resolves, however it does. Rule 3:
what a worker had in flight when it ended is settled then: it goes on in the next one, or ends with the death.
Rule 4: a successor loads while the old one goes on, and takes over when it is ready; then the old one drains.
Rule 5: no life begins without a reservation of memory. It is kept from one life to the next, unless another model needs it.
"""

import logging

import trio

from mlxsup.config.schema import Model as ModelConfig
from mlxsup.config.schema import Recovery
from mlxsup.config.schema import Worker as WorkerConfig
from mlxsup.protocol import worker_link as link
from mlxsup.protocol.errors import RpcError
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.pool.casualties import Casualties
from mlxsup.supervisor.pool.life import Ending, Life, WorkerSource
from mlxsup.supervisor.pool.lifecycle import WorkerState
from mlxsup.supervisor.pool.lives import Lives
from mlxsup.supervisor.pool.next_worker import NextWorker
from mlxsup.supervisor.pool.replacement import Replacement
from mlxsup.supervisor.pool.self_tests import SelfTests
from mlxsup.supervisor.pool.standing import Standing
from mlxsup.supervisor.pool.turn import Turn
from mlxsup.supervisor.pool.unavailable import given_up_error, stopped_error
from mlxsup.supervisor.pool.worker_memory import WorkerMemory
from mlxsup.supervisor.recovery.aftermath import Aftermath
from mlxsup.supervisor.recovery.gate import Gate
from mlxsup.supervisor.recovery.restart_policy import RestartPolicy
from mlxsup.supervisor.residency.residency import Reservation
from mlxsup.supervisor.residency.tenant import Demand
from mlxsup.supervisor.scheduling.scheduler import Scheduler

_log = logging.getLogger(__name__)


class Succession:
    """The lives' owner, and the only one who changes the model's standing."""

    def __init__(
        self,
        name: str,
        model: ModelConfig,
        config: WorkerConfig,
        recovery: Recovery,
        source: WorkerSource,
        *,
        standing: Standing,
        scheduler: Scheduler,
        gate: Gate,
        policy: RestartPolicy,
        casualties: Casualties,
        reservation: Reservation,
        self_tests: SelfTests,
    ) -> None:
        self.name = name
        self._standing = standing
        self._scheduler = scheduler
        self._gate = gate
        self._policy = policy
        self._casualties = casualties
        self._reservation = reservation
        reservation.occupy(self)
        self._self_tests = self_tests
        self._lives = Lives(model, config, recovery, source, self_tests)
        self._memory = WorkerMemory(reservation, self._lives, scheduler, source, recovery.headroom_bytes)
        self._turn = Turn(recovery, source.available)
        self.next = NextWorker(
            self._lives,
            standing=standing,
            scheduler=scheduler,
            gate=gate,
            policy=policy,
            turn=self._turn,
            reservation=reservation,
        )
        self._replacement = Replacement(
            name,
            self._lives,
            self._memory,
            recovery,
            begin=self._begin,
            is_settled=lambda: self.next.is_kept and standing.state is WorkerState.READY,
        )

    @property
    def current(self) -> Life | None:
        """The worker that serves, or will."""
        return self._lives.current

    @property
    def generation(self) -> int:
        """Of the worker that serves, or served last."""
        return self._lives.generation

    # What the runner wants.

    async def use(self, model: ModelConfig) -> None:
        """A worker that was loaded otherwise ends, after its requests."""
        if model != self._lives.model:
            self._lives.model = model
            await self.stop(at_once=False)

    def tune_prefill(self, chunk_tokens: int | None) -> None:
        """For the workers that are there, and those to come; None: as is configured."""
        self._lives.tune_prefill(chunk_tokens)

    async def stop(self, *, at_once: bool) -> None:
        await self._lives.stop(at_once=at_once)

    async def drained(self) -> None:
        """Until none drains that was replaced before: there are never more than two."""
        await self._lives.drained()

    def replace(self, old: Life) -> Life | None:
        """Another one takes over from the worker that serves; None when `old` has to end first."""
        return self._replacement.replace(old)

    def request_ended(self, request: GenerationRequest) -> None:
        self._look_for_idle()
        self._reservation.used()
        self._replacement.request_ended(request)

    # What its memory is needed for.

    def demand(self) -> Demand:
        return self._memory.demand()

    def make_room(self) -> None:
        self.next.let_go()
        self._memory.make_room()

    # One life after the other.

    async def run(self) -> None:
        """Begin a life whenever one is wanted and none is there; until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            while True:
                await self.next.wait()
                if self.current is None and self.next.closing is None and await self.next.may_begin():
                    self._lives.current = self._begin()

    def _begin(self) -> Life:
        life = self._lives.begin(self)
        self._memory.count()
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
        closing = self.next.closing
        was_current, was_successor = life is self.current, life is self._lives.successor
        self._lives.remove(life)
        if self._memory.makes_room:
            # Who still waits has to wait for another turn; that it was wanted alone is no reason to have one.
            self.next.let_go()
        if was_successor:
            self._replacement.note_refused(now_s)
        lost = self._scheduler.on_lost(life, now_s)
        if ending.death is not None:
            error = self._after_death(life, ending, lost, now_s, was_current=was_current)
        else:
            for request in (request for request in lost if not request.ended):
                self._scheduler.fail(request, closing or stopped_error(), now_s)
            self._after_end(ending, now_s, was_current=was_current)
            error = ending.refusal or closing or stopped_error()
        if closing is not None and not self._lives:
            self._scheduler.fail_queued(closing, now_s)
        self._memory.pass_on(wanted=self.next.is_wanted())
        life.conclude(error)

    def _after_end(self, ending: Ending, now_s: float, *, was_current: bool) -> None:
        refusal = ending.refusal
        if not was_current:
            if refusal is not None:
                _log.error("%s: the new worker can't be had, the old one goes on: %s", self.name, refusal)
        elif refusal is None:
            self._enter(WorkerState.STOPPED)
            if self.next.is_wanted():
                self.next.want()
        elif ending.passing and (wait_s := self._policy.note_death(1, now_s)) is not None:
            self.next.delay(wait_s, refusal.message)
        else:
            self.next.give_up(WorkerState.FAILED, refusal)

    def _after_death(
        self, life: Life, ending: Ending, lost: list[GenerationRequest], now_s: float, *, was_current: bool
    ) -> RpcError:
        another = bool(self.current or self._lives.successor) or self._standing.state is WorkerState.BACKOFF
        aftermath = self._casualties.settle(
            life,
            ending,
            lost,
            questions=life.questions,
            another=another,
            restarts=was_current or not another,
            closing=self.next.closing,
            now_s=now_s,
        )
        if was_current:
            self._turn.note_death(life.samples[-1] if life.samples else None, aftermath.wait_s or 0.0)
            self._go_on(aftermath)
        elif self.current is None and self._scheduler.queued:
            # It had been replaced, and who replaced it is gone, too.
            self._turn.delay(aftermath.wait_s or 0.0)
            self.next.want()
        return aftermath.error

    def _go_on(self, aftermath: Aftermath) -> None:
        """After the death of the worker that served."""
        if (successor := self._lives.successor) is not None:
            # It loads, and is the model's worker now.
            self._lives.promote()
            self._standing.adopt(successor.state, self.generation)
        elif aftermath.given_up is not None:
            self.next.give_up(aftermath.given_up, given_up_error(aftermath.given_up, aftermath))
        else:
            assert aftermath.wait_s is not None
            self.next.delay(aftermath.wait_s, aftermath.reason)

    def _look_for_idle(self) -> None:
        for life in self._lives:
            if not self._scheduler.has_work(life):
                life.idle()

    def _enter(self, state: WorkerState, reason: str | None = None) -> None:
        self._standing.enter(state, self.generation, reason)

    # What its lives tell.

    def enter(self, life: Life, state: WorkerState) -> None:
        if life is self.current:
            leaves = self._memory.makes_room and state in (WorkerState.DRAINING, WorkerState.STOPPING)
            self._enter(state, "makes room for another model" if leaves else None)

    def report(self, life: Life, progress: link.LoadProgress) -> None:
        life.loading.report(progress)
        if life is self.current:
            self._standing.attempt.report(progress)

    def ready(self, life: Life, loaded: link.Loaded) -> None:
        megabytes = loaded.weights_bytes // 10**6
        _log.info("%s: loaded in %.1f s, %d MB of weights", self.name, loaded.load_s, megabytes)
        if loaded.self_test is not None:
            life.switched_off = loaded.self_test.switched_off
            self._self_tests.note(loaded.self_test)
        now_s = trio.current_time()
        self._turn.note_ready()
        self._replacement.note_ready(now_s)
        if life is self._lives.successor:
            old = self._lives.promote()
            assert old is not None
            self._standing.adopt(WorkerState.READY, self.generation)
            old.stop(at_once=False)
        self._standing.settle(None)
        self._lives.tune_newcomer(life)
        self._scheduler.on_ready(self._memory.place(life, loaded), now_s)
        life.loading.settle(None)

    def take_step(self, life: Life, step: link.Step) -> None:
        self._scheduler.on_step(life, step, trio.current_time())
        self._gate.note_step(trio.current_time())

    def take_answer(self, life: Life, id: int, answer: link.Generated | RpcError) -> None:
        self._scheduler.on_done(life, id, answer, trio.current_time())
        self._look_for_idle()
        self._reservation.used()

    def question_answered(self) -> None:
        self._reservation.used()
        self._scheduler.on_question_answered(trio.current_time())

    def draining(self, life: Life) -> bool:
        return self._scheduler.on_drain(life)

    def ending(self, life: Life) -> None:
        self._scheduler.on_pause(life)

    def sampled(self, life: Life) -> None:
        self._memory.measure()
        self._replacement.sampled(life)
