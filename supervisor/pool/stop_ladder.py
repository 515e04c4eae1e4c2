"""How a worker's process is ended: gently, and less and less so.

Each rung has its own grace and is climbed only while the process lives: `shutdown` and the end of its input, which a
worker obeys between two steps of its batch; SIGCONT and SIGTERM; SIGKILL to its process group. On a Mac a hard kill can
strand wired memory until a reboot, so it is last. Whoever climbs is shielded: bounded by the graces.
"""

import logging
import signal
from collections.abc import Callable

import trio

from mlxsup.config.schema import Worker as WorkerConfig
from mlxsup.supervisor.pool.process import ChildProcess

_log = logging.getLogger(__name__)

# faulthandler writes the stacks of all threads from its signal handler.
_DUMP_S = 0.2


class StopLadder:
    def __init__(self, process: ChildProcess, config: WorkerConfig, give_up: Callable[[], None]) -> None:
        """`give_up` is called when the process outlives SIGKILL."""
        self._process = process
        self._config = config
        self._give_up = give_up

    async def climb(self, tell: Callable[[], None]) -> None:
        """From the first rung, on which `tell` tells the worker to shut down."""
        with trio.CancelScope(shield=True):
            if self._process.returncode is not None:
                return
            tell()
            if not await self.ended_within(self._config.exit_grace_s):
                _log.warning("worker %d has not ended by itself: sending SIGTERM", self._process.pid)
                await self._terminate()

    async def end_stalled(self) -> None:
        """For a worker that gets nowhere: its stacks first, so that somebody can see why."""
        with trio.CancelScope(shield=True):
            # A stopped process dumps nothing before it goes on, and then it is told to end in the same moment.
            self._process.signal_group(signal.SIGUSR1)
            if not await self.ended_within(_DUMP_S):
                await self._terminate()

    async def _terminate(self) -> None:
        # In this order: of a process that is stopped any thread may take SIGTERM up when it goes on, and only the main
        # thread runs Python's handler, which may wait for long.
        self._process.signal_group(signal.SIGCONT)
        self._process.signal_group(signal.SIGTERM)
        if not await self.ended_within(self._config.term_grace_s):
            await self.kill()

    async def kill(self) -> None:
        """The last rung: SIGKILL to the whole group."""
        with trio.CancelScope(shield=True):
            _log.warning("killing worker %d", self._process.pid)
            self._process.signal_group(signal.SIGKILL)
            if not await self.ended_within(self._config.kill_grace_s):
                _log.error(
                    "worker %d survives SIGKILL: the kernel holds it, and nobody waits for it",
                    self._process.pid,
                )
                self._give_up()

    async def ended_within(self, grace_s: float) -> bool:
        with trio.move_on_after(grace_s):
            await self._process.wait()
        return self._process.returncode is not None
