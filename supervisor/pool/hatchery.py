"""Where workers come from: spawned on demand, or taken from spares whose imports are done already.

A spare costs the memory of its imports and saves the seconds that they take, when a worker has just died and streams
wait. Its own imports would take processor time from a load and from the first step after it, so it is started behind
them. Spares that die are replaced, more and more slowly.
"""

import logging
from collections.abc import Awaitable, Callable

import trio

from mlxsup.config.schema import Worker as WorkerConfig
from mlxsup.supervisor.pool.process import ChildProcess
from mlxsup.supervisor.pool.worker import Worker, WorkerGoneError

_log = logging.getLogger(__name__)

_PATIENCE_S = 1.0
_PATIENCE_MAX_S = 60.0
# A load that takes longer than this reads from a disk, and a death meanwhile should find a spare.
_LOAD_MAX_S = 20.0
# Nobody may want anything of a worker that has loaded.
_FIRST_STEP_S = 5.0

Spawn = Callable[[], Awaitable[ChildProcess]]


class Hatchery:
    """Workers are served by tasks in `nursery`, which outlives those who use them."""

    def __init__(self, spawn: Spawn, config: WorkerConfig, nursery: trio.Nursery) -> None:
        self._spawn = spawn
        self._config = config
        self._nursery = nursery
        self._spares: list[Worker] = []
        # The spare whose imports are not done yet.
        self._unborn: Worker | None = None
        # Handed out, and perhaps still loading.
        self._loading: list[Worker] = []
        self._taken = trio.Event()

    async def hatch(self) -> Worker:
        """A worker that nobody else has, and that may not have said hello yet: whoever gets it has to `stop` it.

        Raises:
            OSError: it could not be spawned.
        """
        worker = self._take() or await self._new()
        self._loading = [other for other in self._loading if not other.at_work.is_set()]
        self._loading.append(worker)
        return worker

    def _take(self) -> Worker | None:
        while self._spares:
            spare = self._spares.pop(0)
            if spare.returncode is None:
                self._taken.set()
                return spare
        unborn, self._unborn = self._unborn, None
        if unborn is not None and unborn.returncode is None:
            # It is further on than a new one would be, which would only slow it down.
            self._taken.set()
            return unborn
        return None

    async def keep_spares(self) -> None:
        """Keep as many ready as the configuration says; until cancelled, then end them."""
        patience_s = _PATIENCE_S
        try:
            while True:
                if self._taken.is_set():
                    self._taken, patience_s = trio.Event(), _PATIENCE_S
                living = [spare for spare in self._spares if not spare.gone.is_set()]
                lost, self._spares = len(self._spares) - len(living), living
                if not lost and len(living) >= self._config.spares:
                    await self._wait_loss()
                elif lost or not await self._add_spare():
                    await trio.sleep(patience_s)
                    patience_s = min(_PATIENCE_MAX_S, 2 * patience_s)
        finally:
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as ending:
                    for spare in self._spares:
                        ending.start_soon(spare.stop)
            self._spares = []

    async def _let_load(self) -> None:
        with trio.move_on_after(_LOAD_MAX_S):
            while self._loading:
                worker = self._loading[0]
                await worker.load_over.wait()
                with trio.move_on_after(_FIRST_STEP_S):
                    await worker.at_work.wait()
                self._loading = [other for other in self._loading if other is not worker]

    async def _add_spare(self) -> bool:
        await self._let_load()
        try:
            worker = await self._new()
        except OSError as error:
            _log.error("cannot start a spare worker: %s", error.strerror)
            return False
        self._unborn = worker
        try:
            with trio.fail_after(self._config.hello_timeout_s):
                await worker.wait_hello()
        except (WorkerGoneError, trio.TooSlowError):
            if self._take_back(worker):
                _log.error("a spare worker did not start")
                await worker.stop()
                return False
        except trio.Cancelled:
            if self._take_back(worker):
                await worker.stop()
            raise
        if self._take_back(worker):
            _log.info("spare worker %d is ready", worker.pid)
            self._spares.append(worker)
        return True

    def _take_back(self, worker: Worker) -> bool:
        """Whether it is still nobody's: else whoever took it sees to it."""
        if self._unborn is not worker:
            return False
        self._unborn = None
        return True

    async def _wait_loss(self) -> None:
        """Until a spare is taken, or has died."""
        async with trio.open_nursery() as nursery:
            for wait in (self._taken.wait, *(spare.gone.wait for spare in self._spares)):
                nursery.start_soon(_cancel_after, wait, nursery.cancel_scope)

    async def _new(self) -> Worker:
        # Nothing is awaited behind the spawn: a cancellation there would leak a live process.
        worker = Worker(await self._spawn(), self._config)
        self._nursery.start_soon(worker.run)
        return worker


async def _cancel_after(wait: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
    await wait()
    scope.cancel()
