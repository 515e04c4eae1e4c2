"""Where workers get their turns at reading prompts, while more than one of them is on the GPU."""

import math
from typing import Literal, Protocol

import trio

from mlxsup.supervisor.lease.arbiter import Arbiter, LeaseBounds

LeaseMode = Literal["auto", "on", "off"]

# A shorter chunk is over before a turn could be asked for.
TOKENS_MIN = 64


class Member(Protocol):
    """A worker that is ready."""

    def __hash__(self) -> int: ...

    def grant_lease(self) -> None: ...

    def bound_lease(self, tokens_min: int) -> None:
        """From now on it asks for a turn for chunks of at least so many tokens; 0: for none."""
        ...


class LeaseDesk:
    """One for all models. `auto`: for workers on a GPU, where prompts take the time of others' tokens."""

    def __init__(self, mode: LeaseMode, bounds: LeaseBounds | None = None) -> None:
        self._mode = mode
        self._arbiter: Arbiter[Member] = Arbiter(bounds or LeaseBounds(), lambda member: member.grant_lease())
        self._members: list[Member] = []
        self._changed = trio.Event()

    def join(self, member: Member, device: str) -> None:
        """It is ready, on `device` by its own account."""
        if self._mode == "off" or (self._mode == "auto" and device == "cpu"):
            return
        self._members.append(member)
        if len(self._members) == 2:
            self._members[0].bound_lease(TOKENS_MIN)
        if len(self._members) > 1:
            member.bound_lease(TOKENS_MIN)

    def leave(self, member: Member) -> None:
        """It has ended, or will; it is told nothing any more."""
        if member not in self._members:
            return
        self._members.remove(member)
        self._arbiter.on_gone(member, trio.current_time())
        if len(self._members) == 1:
            self._members[0].bound_lease(0)
        self._look_again()

    def ask(self, member: Member, urgency: int) -> None:
        if member in self._members:
            self._arbiter.on_ask(member, urgency, trio.current_time())
            self._look_again()

    def done(self, member: Member) -> None:
        if member in self._members:
            self._arbiter.on_done(member, trio.current_time())
            self._look_again()

    def stepped(self, member: Member) -> None:
        """It has told tokens."""
        if len(self._members) > 1 and member in self._members:
            self._arbiter.on_step(member, trio.current_time())

    def idle(self, member: Member) -> None:
        """It has no request any more."""
        if len(self._members) > 1 and member in self._members:
            self._arbiter.on_idle(member, trio.current_time())

    async def run(self) -> None:
        """Keep time: a turn ends, and a wait, also when nobody says anything. Until cancelled."""
        while True:
            self._changed = trio.Event()
            with trio.move_on_at(self._arbiter.next_tick_s if self._members else math.inf):
                await self._changed.wait()
                continue
            self._arbiter.on_tick(trio.current_time())

    def _look_again(self) -> None:
        self._changed.set()
