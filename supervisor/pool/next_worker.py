"""The model's next worker: whether it is wanted, when it may begin, and what they are told who wait for it."""

import math

import trio

from mlxsup.protocol.errors import RpcError
from mlxsup.supervisor.pool.lifecycle import WorkerState
from mlxsup.supervisor.pool.lives import Lives
from mlxsup.supervisor.pool.standing import Standing
from mlxsup.supervisor.pool.turn import Turn
from mlxsup.supervisor.pool.unavailable import stranded_error
from mlxsup.supervisor.recovery.gate import Gate
from mlxsup.supervisor.recovery.restart_policy import RestartPolicy
from mlxsup.supervisor.residency.residency import Reservation
from mlxsup.supervisor.scheduling.scheduler import Scheduler


class NextWorker:
    def __init__(
        self,
        lives: Lives,
        *,
        standing: Standing,
        scheduler: Scheduler,
        gate: Gate,
        policy: RestartPolicy,
        turn: Turn,
        reservation: Reservation,
    ) -> None:
        self._lives = lives
        self._standing = standing
        self._scheduler = scheduler
        self._gate = gate
        self._policy = policy
        self._turn = turn
        self._reservation = reservation
        self._wanted = trio.Event()
        # Once wanted, a model is kept: a worker that dies is replaced, also while nobody asks for anything.
        self.is_kept = False
        # What everybody is told once no worker is to begin any more.
        self.closing: RpcError | None = None

    # Whether it is wanted.

    def want(self) -> None:
        self.is_kept = True
        self._wanted.set()
        self._reservation.used()

    def let_go(self, error: RpcError | None = None) -> None:
        """Nobody has to be replaced any more, unless requests wait. With `error`, whoever waits is told that."""
        self.is_kept = False
        if error is not None:
            self._scheduler.fail_queued(error, trio.current_time())
            self._standing.settle(error)

    def close(self, error: RpcError) -> None:
        """None begins any more, and whoever waits is told."""
        self.closing = error
        self.let_go()
        self._scheduler.fail_newcomers(error, trio.current_time())
        self._standing.settle(error)
        self._turn.look_again()

    def is_wanted(self) -> bool:
        if self.closing is not None:
            return False
        return self.is_kept or self._is_asked_for()

    def _is_asked_for(self) -> bool:
        waiting = self._scheduler.queued > 0 or self._standing.attempt.waiters > 0
        return waiting and self.closing is None

    # When it may begin.

    async def wait(self) -> None:
        """Until somebody wants it, since the last time."""
        await self._wanted.wait()
        self._wanted = trio.Event()

    async def may_begin(self) -> bool:
        """Whether it is wanted still when its turn has come and it has its memory; if it can't have it, all are told."""
        stranded = await self._turn.wait(self.is_wanted, self._tell_why)
        refusal = None
        if stranded is not None:
            refusal = stranded_error(stranded)
        elif self.is_wanted():
            refusal = await self._reservation.wait(self._is_asked_for, self._tell_why)
            # Nobody waits for what another model would have to make room for.
            self.is_kept = self.is_kept and self._reservation.is_held
        if self.is_wanted() and refusal is not None:
            self.give_up(WorkerState.FAILED, refusal)
        elif self.is_wanted() and self._reservation.is_held:
            return True
        self.rest()
        return False

    def forgive(self) -> None:
        """Somebody asks by hand: what was held against the model is forgotten, and nothing waited for."""
        self._policy.forgive()
        self._gate.open()
        self._turn.hasten()
        self._reservation.hurry()

    # What follows the last one's end.

    def delay(self, wait_s: float, reason: str) -> None:
        """It begins after that, by itself, if it is wanted."""
        self._turn.delay(wait_s)
        if self.is_wanted():
            self._enter(WorkerState.BACKOFF, reason)
            self.want()
        else:
            self._enter(WorkerState.STOPPED)

    def give_up(self, state: WorkerState, error: RpcError) -> None:
        """None can be had: whoever waits is told why, and so is whoever comes while that is not tried again."""
        self.is_kept = False
        hold_s = self._turn.note_refusal() if state is WorkerState.FAILED else math.inf
        self._gate.shut(error, trio.current_time() + hold_s)
        self._scheduler.fail_queued(error, trio.current_time())
        self._standing.settle(error)
        self._enter(state, error.message)

    def rest(self) -> None:
        """Wait for none that nobody wants any more."""
        if self.is_wanted():
            return
        if self._standing.state is WorkerState.BACKOFF:
            self._enter(WorkerState.STOPPED)
        if not self._lives:
            self._reservation.release()

    def _tell_why(self, reason: str) -> None:
        if (self._standing.state, self._standing.reason) != (WorkerState.BACKOFF, reason):
            self._enter(WorkerState.BACKOFF, reason)

    def _enter(self, state: WorkerState, reason: str | None = None) -> None:
        self._standing.enter(state, self._lives.generation, reason)
