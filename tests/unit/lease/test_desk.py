"""The desk of turns: switched on while two workers share the device, and kept in time by the clock."""

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mlxsup.supervisor.lease.arbiter import LeaseBounds
from mlxsup.supervisor.lease.desk import TOKENS_MIN, LeaseDesk, LeaseMode


class Recorder:
    def __init__(self) -> None:
        self.bounds: list[int] = []
        self.granted_s: list[float] = []

    def grant_lease(self) -> None:
        self.granted_s.append(trio.current_time())

    def bound_lease(self, tokens_min: int) -> None:
        self.bounds.append(tokens_min)


@pytest.mark.parametrize(
    ("mode", "device", "shared"),
    [
        ("auto", "metal", True),
        ("auto", "cuda", True),
        ("auto", "cpu", False),
        ("on", "cpu", True),
        ("off", "metal", False),
    ],
)
async def test_turns_begin_with_the_second_worker_and_end_with_the_last_but_one(
    mode: LeaseMode, device: str, shared: bool
) -> None:
    desk = LeaseDesk(mode)
    members = [Recorder() for _ in range(3)]
    for member in members:
        desk.join(member, device)
    for member in members:
        desk.leave(member)
        desk.leave(member)

    expected = [[TOKENS_MIN], [TOKENS_MIN], [TOKENS_MIN, 0]] if shared else [[], [], []]
    assert [member.bounds for member in members] == expected


async def test_who_was_never_there_gets_no_turn(autojump_clock: MockClock) -> None:
    desk, stranger = LeaseDesk("on"), Recorder()
    desk.ask(stranger, 0)
    assert stranger.granted_s == []


async def test_a_turn_that_is_not_ended_passes_on_in_time_and_one_of_a_dead_worker_at_once(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    desk = LeaseDesk("on", LeaseBounds(turn_s_max=7.0, step_wait_s=2.0))
    one, two, three = members = [Recorder() for _ in range(3)]
    for member in members:
        desk.join(member, "cpu")
    nursery.start_soon(desk.run)
    await wait_all_tasks_blocked()
    for member in members:
        desk.ask(member, 2)
    began_s = trio.current_time()
    await trio.sleep(8.0)
    assert (one.granted_s, two.granted_s, three.granted_s) == ([began_s], [began_s + 7.0], [])
    desk.leave(two)
    assert three.granted_s == [began_s + 8.0]
    nursery.cancel_scope.cancel()


async def test_the_next_turn_waits_for_the_tokens_of_others_but_not_for_ever(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    desk = LeaseDesk("on", LeaseBounds(turn_s_max=7.0, step_wait_s=2.0))
    reader, teller = Recorder(), Recorder()
    for member in (reader, teller):
        desk.join(member, "cpu")
    nursery.start_soon(desk.run)
    await wait_all_tasks_blocked()
    desk.stepped(teller)
    began_s = trio.current_time()
    for _ in range(2):
        desk.ask(reader, 2)
        desk.done(reader)
    desk.ask(reader, 2)
    assert reader.granted_s == [began_s]
    await trio.sleep(1.0)
    desk.stepped(teller)
    assert reader.granted_s == [began_s, began_s + 1.0]
    desk.done(reader)
    desk.ask(reader, 2)
    await trio.sleep(5.0)
    assert reader.granted_s[2:] == [began_s + 3.0]
    nursery.cancel_scope.cancel()
