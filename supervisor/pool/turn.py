"""When a model's next worker may be started: after the wait that its last end asks for, and once memory has come back.

On some machines the memory of a process comes back a while after its end, and on a Mac perhaps never. So it is measured
again for `memory_wait_s` before the start is refused. Whoever asks by hand waits for neither.
"""

import math
from collections.abc import Callable

import trio

from mlxsup.config.schema import Recovery
from mlxsup.supervisor.recovery.limits import memory_limits
from mlxsup.supervisor.recovery.memory_truth import MemorySample, Stranded, judge_memory

_LOOK_S = 0.5


class Turn:
    """`available` is the memory that the machine has left, in bytes."""

    def __init__(self, recovery: Recovery, available: Callable[[], int]) -> None:
        self._recovery = recovery
        self._available = available
        self._not_before_s = -math.inf
        self._hurry = trio.Event()
        # What the worker that died held at last.
        self._left: MemorySample | None = None
        self._refusals = 0

    def note_death(self, last: MemorySample | None, wait_s: float) -> None:
        """`last` is the newest sample of the worker that died, None where there was none."""
        self._left = last
        self.delay(wait_s)

    def delay(self, wait_s: float) -> None:
        self._not_before_s = trio.current_time() + wait_s

    def note_refusal(self) -> float:
        """A load has failed. For how many seconds another one would only fail again: longer each time."""
        recovery = self._recovery
        hold_s = min(recovery.failed_hold_max_s, recovery.failed_hold_s * 2.0 ** min(self._refusals, 64))
        self._refusals += 1
        self._not_before_s = -math.inf
        return hold_s

    def note_ready(self) -> None:
        self._refusals = 0

    def hasten(self) -> None:
        """Somebody asks by hand: what was held against a start is forgotten."""
        self._not_before_s = -math.inf
        self._left = None
        self._refusals = 0
        self.look_again()

    def look_again(self) -> None:
        """Whoever waits finds out whether that is still wanted."""
        self._hurry.set()

    async def wait(self, is_wanted: Callable[[], bool], tell: Callable[[str], None]) -> Stranded | None:
        """Until it is time, or nobody wants it any more; with what is missing if memory has not come back.

        `tell` is called with why it takes longer than the wait that was asked for.
        """
        self._hurry = trio.Event()
        with trio.move_on_at(self._not_before_s):
            await self._hurry.wait()
        until_s = trio.current_time() + self._recovery.memory_wait_s
        while is_wanted():
            stranded = judge_memory(self._left, self._available(), memory_limits(self._recovery))
            if stranded is None:
                self._left = None
                return None
            if trio.current_time() >= until_s:
                return stranded
            tell(str(stranded))
            self._hurry = trio.Event()
            with trio.move_on_after(_LOOK_S):
                await self._hurry.wait()
        return None
