"""Two lives whose workers share a device: what one asks, is granted and gives back goes through the worker protocol."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import trio
import trio.testing
from trio.testing import MockClock

from mlxsup.config.schema import Model, Recovery, Worker
from mlxsup.protocol import worker_link as link
from mlxsup.protocol.jsonrpc import Call, encode_notification
from mlxsup.supervisor.events import EventBus
from mlxsup.supervisor.lease.arbiter import LeaseBounds
from mlxsup.supervisor.lease.desk import TOKENS_MIN, LeaseDesk
from mlxsup.supervisor.pool.hatchery import Hatchery
from mlxsup.supervisor.pool.life import Life, WorkerSource
from mlxsup.supervisor.pool.process import Observation
from mlxsup.supervisor.pool.self_tests import SelfTests
from mlxsup.supervisor.residency.residency import Weights
from tests.fakes.memory_worker import MemoryWorker, Plan

CONFIG = Worker(spares=0, parked_bytes_max=12345)
TURN_S_MAX = 7.0


class Asking(MemoryWorker):
    """Asks for a turn as soon as it is told that there are turns, and writes down what it is told."""

    def __init__(self, pid: int) -> None:
        super().__init__(pid, Plan(load_s=1.0))
        self.told: list[Any] = []
        self.changed = trio.Event()

    async def _obey(self, call: Call) -> None:
        if call.method == link.TUNE:
            tuned = msgspec.json.decode(call.params or b"", type=link.Tune)
            self._note(tuned.lease_tokens_min)
            if tuned.lease_tokens_min:
                await self._say(encode_notification(link.LEASE_ASK, link.LeaseAsk(tokens=100, urgency=2)))
        elif call.method == link.LEASE_GRANT:
            self._note("granted")
        else:
            await super()._obey(call)

    def _note(self, what: Any) -> None:
        self.told.append(what)
        self.changed.set()
        self.changed = trio.Event()

    async def give_back(self) -> None:
        await self._say(encode_notification(link.LEASE_DONE, link.LeaseTurn()))

    async def wait_told(self, count: int) -> list[Any]:
        with trio.fail_after(60):
            while len(self.told) < count:
                await self.changed.wait()
        return self.told


class Indifferent:
    """An owner to whom nothing matters."""

    def __getattr__(self, _: str) -> Any:
        return lambda *_: None

    def draining(self, _: Life) -> bool:
        return False


@asynccontextmanager
async def two_lives() -> AsyncIterator[list[Asking]]:
    asking: list[Asking] = []
    async with trio.open_nursery() as workers, trio.open_nursery() as nursery:

        async def spawn() -> Asking:
            await trio.lowlevel.checkpoint()
            asking.append(Asking(1000 + len(asking)))
            workers.start_soon(asking[-1].live)
            return asking[-1]

        async def locate() -> Path:
            return Path("/model")

        async def weigh() -> Weights:
            return Weights(1)

        desk = LeaseDesk("on", LeaseBounds(turn_s_max=TURN_S_MAX))
        nursery.start_soon(desk.run)
        source = WorkerSource(
            locate=locate,
            hatch=Hatchery(spawn, CONFIG, nursery).hatch,
            observe=lambda _: Observation(1, 10**12, False),
            available=lambda: 10**12,
            weigh=weigh,
            lease=desk,
        )
        for generation in (1, 2):
            self_tests = SelfTests("m", EventBus(), lambda: None)
            life = Life(source, Model(), CONFIG, Recovery(), Indifferent(), generation, self_tests)
            nursery.start_soon(life.run)
            while life.ready_s is None:  # noqa: ASYNC110  (on the mock clock)
                await trio.sleep(0.1)
        yield asking
        nursery.cancel_scope.cancel()


async def first_granted(one: Asking, two: Asking) -> tuple[Asking, Asking]:
    """Both ask at the same moment: who has the first turn, and the other one."""
    await one.wait_told(1)
    await two.wait_told(1)
    await trio.testing.wait_all_tasks_blocked()
    return (one, two) if "granted" in one.told else (two, one)


async def test_the_first_has_a_turn_and_the_second_has_it_when_it_is_given_back(
    autojump_clock: MockClock,
) -> None:
    async with two_lives() as (one, two):
        first, second = await first_granted(one, two)
        await trio.sleep(1.0)
        assert second.told == [TOKENS_MIN]
        await first.give_back()
        assert await second.wait_told(2) == [TOKENS_MIN, "granted"]


async def test_a_turn_of_a_worker_that_dies_goes_to_the_other_which_then_is_alone(
    autojump_clock: MockClock,
) -> None:
    async with two_lives() as (one, two):
        first, second = await first_granted(one, two)
        first.die(-11)
        assert await second.wait_told(3) == [TOKENS_MIN, "granted", 0]


async def test_a_worker_is_told_how_much_it_may_keep_of_those_who_gave_way(autojump_clock: MockClock) -> None:
    async with two_lives() as lives:
        assert [worker.order and worker.order.parked_bytes_max for worker in lives] == [12345] * 2


async def test_a_turn_that_is_never_given_back_is_taken(autojump_clock: MockClock) -> None:
    async with two_lives() as (one, two):
        _, second = await first_granted(one, two)
        began_s = trio.current_time()
        await second.wait_told(2)
        assert trio.current_time() - began_s <= TURN_S_MAX + 0.01
