"""One worker's life after the other, and two at a time while one replaces the other.

Rule 1: a life is begun when something wants the model, and again when a worker dies, as the restart policy says, until
the model is unloaded. Rule 2: whoever waits for a worker is settled when its load resolves, however it does. Rule 3:
what a worker had in flight when it ended is settled then: it goes on in the next one, or ends with the death.
Rule 4: a successor loads while the old one goes on, and takes over when it is ready; then the old one drains.
Rule 5: no life begins without a reservation of memory. It is kept from one life to the next, unless another model needs it.
"""

import logging
import math

import trio

from mlxsup.config.schema import Model as ModelConfig
from mlxsup.config.schema import Recovery
from mlxsup.config.schema import Worker as WorkerConfig
from mlxsup.protocol import worker_link as link
from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.pool.casualties import Casualties
from mlxsup.supervisor.pool.demand import demand_of
from mlxsup.supervisor.pool.life import Ending, Life, WorkerSource
from mlxsup.supervisor.pool.lifecycle import WorkerState
from mlxsup.supervisor.pool.standing import Standing
from mlxsup.supervisor.pool.turn import Turn
from mlxsup.supervisor.recovery.aftermath import Aftermath
from mlxsup.supervisor.recovery.gate import Gate
from mlxsup.supervisor.recovery.recycling import RecyclePolicy
from mlxsup.supervisor.recovery.restart_policy import RestartPolicy
from mlxsup.supervisor.residency.residency import Reservation
from mlxsup.supervisor.residency.tenant import Demand
from mlxsup.supervisor.scheduling.flights import Place
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
    ) -> None:
        self.name = name
        self._model = model
        self._config = config
        self._recovery = recovery
        self._source = source
        self._standing = standing
        self._scheduler = scheduler
        self._gate = gate
        self._policy = policy
        self._casualties = casualties
        self._reservation = reservation
        reservation.occupy(self)
        # Its memory is to be another model's once it has ended what runs.
        self._makes_room = False
        self._recycling = RecyclePolicy(recovery)
        self._generation = 0
        self._wanted = trio.Event()
        # Once wanted, a model is kept: a worker that dies is replaced, also while nobody asks for anything.
        self._keep = False
        self._turn = Turn(recovery, source.available)
        self._prefill_tokens_per_s: float | None = None
        # Other than is configured, for now.
        self._chunk_tokens: int | None = None
        self._lives: set[Life] = set()
        self.current: Life | None = None
        self._successor: Life | None = None
        self.closing: RpcError | None = None

    @property
    def generation(self) -> int:
        """Of the worker that serves, or served last."""
        return self._generation if self.current is None else self.current.generation

    # What the runner wants.

    def want(self) -> None:
        self._keep = True
        self._wanted.set()
        self._reservation.used()

    def let_go(self, error: RpcError | None = None) -> None:
        """Nobody has to be replaced any more, unless requests wait. With `error`, whoever waits is told that."""
        self._keep = False
        if error is not None:
            self._scheduler.fail_queued(error, trio.current_time())
            self._standing.settle(error)

    async def use(self, model: ModelConfig) -> None:
        """A worker that was loaded otherwise ends, after its requests."""
        if model != self._model:
            self._model = model
            await self.stop(at_once=False)

    def tune_prefill(self, chunk_tokens: int | None) -> None:
        """For the workers that are there, and those to come; None: as is configured."""
        self._chunk_tokens = chunk_tokens
        for life in self._lives:
            if life.ready_s is not None and not life.is_failing:
                life.tune(prefill_chunk_tokens=chunk_tokens or self._model.prefill_chunk_tokens)

    def forgive(self) -> None:
        """Somebody asks by hand: what was held against the model is forgotten, and nothing waited for."""
        self._policy.forgive()
        self._gate.open()
        self._turn.hasten()
        self._reservation.hurry()

    def close(self, error: RpcError) -> None:
        """Begin no life any more, and tell whoever waits."""
        self.closing = error
        self.let_go()
        self._scheduler.fail_newcomers(error, trio.current_time())
        self._standing.settle(error)
        self._turn.look_again()

    async def stop(self, *, at_once: bool) -> None:
        # It is to end, too, and takes over from nobody.
        self._successor = None
        for life in tuple(self._lives):
            life.stop(at_once=at_once)
        for life in tuple(self._lives):
            await life.over.wait()

    def rest(self) -> None:
        """Wait for no restart that nobody wants any more."""
        if self._is_wanted():
            return
        if self._standing.state is WorkerState.BACKOFF:
            self._enter(WorkerState.STOPPED)
        if not self._lives:
            self._reservation.release()

    async def drained(self) -> None:
        """Until none drains that was replaced before: there are never more than two."""
        while self.current is not None:
            replaced = self._lives - {self.current, self._successor}
            if not replaced:
                return
            await replaced.pop().over.wait()

    def replace(self, old: Life) -> Life | None:
        """Another one takes over from the worker that serves; None when `old` has to end first."""
        if self._successor is not None:
            return self._successor
        needed = (old.samples[-1].resident_bytes if old.samples else 0) + self._recovery.headroom_bytes
        if self._source.available() < needed or not self._reservation.may_double():
            _log.info("%s: not enough memory for two workers: draining first", self.name)
            old.stop(at_once=False)
        elif not old.stopping:
            self._successor = self._begin()
        return self._successor

    # What its memory is needed for.

    def demand(self) -> Demand:
        return demand_of(self._scheduler, self._lives)

    def make_room(self) -> None:
        self._keep = False
        self._successor = None
        self._makes_room = bool(self._lives)
        for life in self._lives:
            life.stop(at_once=False)

    def request_ended(self, request: GenerationRequest) -> None:
        self._look_for_idle()
        self._reservation.used()
        if request.marks.dispatched_s is not None:
            self._recycle(self._recycling.after_request(len(request.tokens), trio.current_time()))

    def _recycle(self, why: str | None) -> None:
        old = self.current
        if why is None or old is None or len(self._lives) > 1 or not self._keep:
            return
        if self._standing.state is WorkerState.READY:
            _log.info("%s: recycling the worker: %s", self.name, why)
            self.replace(old)

    # One life after the other.

    async def run(self) -> None:
        """Begin a life whenever one is wanted and none is there; until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            while True:
                await self._wanted.wait()
                self._wanted = trio.Event()
                if self.current is None and self.closing is None and await self._may_begin():
                    self.current = self._begin()

    def _is_wanted(self) -> bool:
        if self.closing is not None:
            return False
        return self._keep or self._is_asked_for()

    def _is_asked_for(self) -> bool:
        waiting = self._scheduler.queued > 0 or self._standing.attempt.waiters > 0
        return waiting and self.closing is None

    async def _may_begin(self) -> bool:
        stranded = await self._turn.wait(self._is_wanted, self._tell_why)
        refusal = None
        if stranded is not None:
            refusal = RpcError(ErrorKind.MODEL_LOAD_FAILED, str(stranded), retriable=True)
        elif self._is_wanted():
            refusal = await self._reservation.wait(self._is_asked_for, self._tell_why)
            # Nobody waits for what another model would have to make room for.
            self._keep = self._keep and self._reservation.is_held
        if self._is_wanted() and refusal is not None:
            self._give_up(WorkerState.FAILED, refusal)
        elif self._is_wanted() and self._reservation.is_held:
            return True
        self.rest()
        return False

    def _tell_why(self, reason: str) -> None:
        if (self._standing.state, self._standing.reason) != (WorkerState.BACKOFF, reason):
            self._enter(WorkerState.BACKOFF, reason)

    def _begin(self) -> Life:
        self._generation += 1
        life = Life(
            self._source,
            self._model,
            self._config,
            self._recovery,
            self,
            self._generation,
            self._prefill_tokens_per_s,
        )
        self._lives.add(life)
        self._reservation.has_workers(len(self._lives))
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
        self._prefill_tokens_per_s = life.prefill_tokens_per_s
        was_current = life is self.current
        if was_current:
            self.current = None
        if self._makes_room:
            # Who still waits has to wait for another turn; that it was wanted alone is no reason to have one.
            self._keep = False
        if life is self._successor:
            self._successor = None
            self._recycling.note_refused(now_s)
        lost = self._scheduler.on_lost(life, now_s)
        if ending.death is not None:
            error = self._after_death(life, ending, lost, now_s, was_current=was_current)
        else:
            for request in (request for request in lost if not request.ended):
                self._scheduler.fail(request, self.closing or stopped_error(), now_s)
            self._after_end(ending, now_s, was_current=was_current)
            error = ending.refusal or self.closing or stopped_error()
        if self.closing is not None and not self._lives:
            self._scheduler.fail_queued(self.closing, now_s)
        self._pass_on_memory()
        life.conclude(error)

    def _pass_on_memory(self) -> None:
        if self._lives:
            self._reservation.has_workers(len(self._lives))
            self._reservation.measured([other.held_bytes for other in self._lives])
        elif self._is_wanted():
            self._reservation.lost()
        else:
            self._reservation.release()
        self._makes_room = self._makes_room and bool(self._lives)

    def _after_end(self, ending: Ending, now_s: float, *, was_current: bool) -> None:
        refusal = ending.refusal
        if not was_current:
            if refusal is not None:
                _log.error("%s: the new worker can't be had, the old one goes on: %s", self.name, refusal)
        elif refusal is None:
            self._enter(WorkerState.STOPPED)
            if self._is_wanted():
                self.want()
        elif ending.passing and (wait_s := self._policy.note_death(1, now_s)) is not None:
            self._wait(wait_s, refusal.message)
        else:
            self._give_up(WorkerState.FAILED, refusal)

    def _after_death(
        self, life: Life, ending: Ending, lost: list[GenerationRequest], now_s: float, *, was_current: bool
    ) -> RpcError:
        another = bool(self.current or self._successor) or self._standing.state is WorkerState.BACKOFF
        aftermath = self._casualties.settle(
            life,
            ending,
            lost,
            questions=life.questions,
            another=another,
            restarts=was_current or not another,
            closing=self.closing,
            now_s=now_s,
        )
        if was_current:
            self._turn.note_death(life.samples[-1] if life.samples else None, aftermath.wait_s or 0.0)
            self._go_on(aftermath)
        elif self.current is None and self._scheduler.queued:
            # It had been replaced, and who replaced it is gone, too.
            self._turn.delay(aftermath.wait_s or 0.0)
            self.want()
        return aftermath.error

    def _go_on(self, aftermath: Aftermath) -> None:
        """After the death of the worker that served."""
        if self._successor is not None:
            # It loads, and is the model's worker now.
            self.current, self._successor = self._successor, None
            self._standing.adopt(self.current.state, self.generation)
        elif aftermath.given_up is not None:
            self._give_up(aftermath.given_up, _down_error(aftermath.given_up, aftermath))
        else:
            assert aftermath.wait_s is not None
            self._wait(aftermath.wait_s, aftermath.reason)

    def _wait(self, wait_s: float, reason: str) -> None:
        """For the next start, which comes by itself if it is wanted."""
        self._turn.delay(wait_s)
        if self._is_wanted():
            self._enter(WorkerState.BACKOFF, reason)
            self.want()
        else:
            self._enter(WorkerState.STOPPED)

    def _give_up(self, state: WorkerState, error: RpcError) -> None:
        """No worker can be had: whoever waits is told why, and so is whoever comes while that is not tried again."""
        self._keep = False
        hold_s = self._turn.note_refusal() if state is WorkerState.FAILED else math.inf
        self._gate.shut(error, trio.current_time() + hold_s)
        self._scheduler.fail_queued(error, trio.current_time())
        self._standing.settle(error)
        self._enter(state, error.message)

    def _look_for_idle(self) -> None:
        for life in self._lives:
            if not self._scheduler.has_work(life):
                life.idle()

    def _enter(self, state: WorkerState, reason: str | None = None) -> None:
        self._standing.enter(state, self.generation, reason)

    # What its lives tell.

    def enter(self, life: Life, state: WorkerState) -> None:
        if life is self.current:
            leaves = self._makes_room and state in (WorkerState.DRAINING, WorkerState.STOPPING)
            self._enter(state, "makes room for another model" if leaves else None)

    def report(self, life: Life, progress: link.LoadProgress) -> None:
        life.loading.report(progress)
        if life is self.current:
            self._standing.attempt.report(progress)

    def ready(self, life: Life, loaded: link.Loaded) -> None:
        megabytes = loaded.weights_bytes // 10**6
        _log.info("%s: loaded in %.1f s, %d MB of weights", self.name, loaded.load_s, megabytes)
        now_s = trio.current_time()
        self._turn.note_ready()
        self._recycling.note_ready(now_s)
        if life is self._successor:
            old, self.current, self._successor = self.current, life, None
            assert old is not None
            self._standing.adopt(WorkerState.READY, self.generation)
            old.stop(at_once=False)
        self._standing.settle(None)
        if self._chunk_tokens is not None:
            life.tune(prefill_chunk_tokens=self._chunk_tokens)
        assert life.worker is not None
        held_bytes = max(life.held_bytes, self._source.observe(life.worker.pid).resident_bytes)
        self._reservation.ready(held_bytes, loaded.kv_bytes_per_token, loaded.context_tokens)
        self._scheduler.on_ready(self._place(life, loaded, held_bytes), now_s)
        life.loading.settle(None)

    def _place(self, life: Life, loaded: link.Loaded, held_bytes: int) -> Place:
        return Place(
            life,
            life.generation,
            context_tokens=loaded.context_tokens,
            kv_bytes_per_token=loaded.kv_bytes_per_token,
            kv_bytes_max=self._reservation.kv_bytes_max(held_bytes),
        )

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
        self._reservation.measured([other.held_bytes for other in self._lives])
        if life is self.current and life.ready_s is not None:
            self._recycle(self._recycling.after_sample(life.samples[-1], trio.current_time()))


def stopped_error() -> RpcError:
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
