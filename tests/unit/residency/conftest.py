"""Several models in one budget on the mock clock, their workers in memory."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio

from mlxsup.config.schema import Memory, Model, Recovery, Scheduling
from mlxsup.config.schema import Worker as WorkerConfig
from mlxsup.protocol.generation import Priority
from mlxsup.protocol.service import Event
from mlxsup.supervisor.events import EventBus
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.pool.hatchery import Hatchery
from mlxsup.supervisor.pool.life import WorkerSource
from mlxsup.supervisor.pool.process import Observation
from mlxsup.supervisor.pool.runner import ModelRunner
from mlxsup.supervisor.recovery.breaker import CircuitBreaker
from mlxsup.supervisor.recovery.limits import machine_limits
from mlxsup.supervisor.recovery.poison import PoisonWatch
from mlxsup.supervisor.residency.residency import PROCESS_BYTES, Residency, Weights
from tests.fakes.collecting_sink import CollectingSink
from tests.fakes.memory_worker import MemoryWorker, Plan, WorkerShop
from tests.fakes.requests import make_request
from tests.unit.pool.conftest import Notes, until

GB = 10**9
SIZE = 2 * GB
"""What each model holds, with its process."""
TOTAL = 100 * GB


class House(msgspec.Struct):
    residency: Residency
    runners: dict[str, ModelRunner]
    shops: dict[str, WorkerShop]
    events: list[tuple[float, str, str, str | None]]
    """Of each change of a model's state: when, which model, to what and why."""
    held_bytes_max: list[int]
    sizes: dict[str, int]
    """What a worker holds of each model; change it at will."""

    def ask(self, model: str, tokens: int = 10, priority: Priority = Priority.NORMAL) -> CollectingSink:
        return self.send(model, tokens, priority)[1]

    def send(
        self, model: str, tokens: int = 10, priority: Priority = Priority.NORMAL
    ) -> tuple[GenerationRequest, CollectingSink]:
        sink = CollectingSink()
        request = make_request(sink, tokens=tokens, priority=priority)
        self.runners[model].submit(request)
        return request, sink

    def loads(self, model: str) -> int:
        return len([worker for worker in self.shops[model].workers if worker.order is not None])

    def alive(self, model: str) -> list[MemoryWorker]:
        return [worker for worker in self.shops[model].workers if worker.returncode is None]

    def state(self, model: str) -> str:
        return self.runners[model].snapshot().state

    def reason(self, model: str) -> str | None:
        return self.runners[model].snapshot().reason

    async def ready(self, model: str) -> None:
        await self.runners[model].ensure_ready()

    async def wait_state(self, model: str, state: str) -> None:
        await until(lambda: self.state(model) == state)

    async def answered(self, *sinks: CollectingSink) -> None:
        await until(lambda: all(sink.outcomes for sink in sinks))


OpenHouse = Callable[..., AbstractAsyncContextManager[House]]


@asynccontextmanager
async def open_house(
    *,
    places: float | None = 2.0,
    memory: Memory | None = None,
    plan: Plan | None = None,
    available: Callable[[int], int] | None = None,
    **models: Model,
) -> AsyncIterator[House]:
    """With a budget for so many models. Without one `available` says what is left when workers hold so much."""
    memory = msgspec.structs.replace(
        memory or Memory(), budget_bytes=None if places is None else int(places * SIZE)
    )
    recovery, config = Recovery(), WorkerConfig(spares=0)
    events = EventBus()
    sizes = dict.fromkeys(models, SIZE)
    async with trio.open_nursery() as workers, trio.open_nursery() as nursery:
        shops = {name: WorkerShop(workers, plan or Plan()) for name in models}

        def held_of(model: str) -> int:
            living = [worker for worker in shops[model].workers if worker.returncode is None]
            return len(living) * sizes[model]

        def held_bytes() -> int:
            return sum(map(held_of, models))

        def available_bytes() -> int:
            return TOTAL - held_bytes() if available is None else available(held_bytes())

        residency = Residency(
            memory,
            headroom_bytes=0,
            blocked_s=recovery.memory_wait_s,
            spares=0,
            total_bytes=TOTAL,
            available=available_bytes,
        )
        nursery.start_soon(residency.run)
        house = House(residency, {}, shops, [], [0], sizes)

        def note(event: Event) -> None:
            house.events.append((trio.current_time(), event.model, event.what, event.detail.get("reason")))
            house.held_bytes_max[0] = max(house.held_bytes_max[0], held_bytes())

        for name, model in models.items():
            source = _source(name, Hatchery(shops[name].spawn, config, nursery), house, available_bytes)
            house.runners[name] = ModelRunner(
                name,
                model,
                config,
                recovery,
                Scheduling(),
                source,
                events,
                witness=Notes(),
                machine=CircuitBreaker(machine_limits(recovery)),
                poison=PoisonWatch(
                    recovery.suspect_tokens, recovery.quarantine_max, recovery.suspect_memory_s
                ),
                rng=random.Random(7),
                residency=residency,
            )
            nursery.start_soon(house.runners[name].run)
        with events.subscribed(note):
            yield house
        nursery.cancel_scope.cancel()


def _source(name: str, hatchery: Hatchery, house: House, available: Callable[[], int]) -> WorkerSource:
    async def locate() -> Path:
        await trio.lowlevel.checkpoint()
        return Path("/model")

    async def weigh() -> Weights:
        await trio.lowlevel.checkpoint()
        return Weights(house.sizes[name] - PROCESS_BYTES)

    def observe(pid: int) -> Observation:
        worker = house.shops[name].by_pid(pid)
        return Observation(house.sizes[name], available(), worker.stopped)

    return WorkerSource(
        locate=locate, hatch=hatchery.hatch, observe=observe, available=available, weigh=weigh
    )


@pytest.fixture(name="open_house")
def _open_house() -> OpenHouse:
    """Tests that use it take `autojump_clock`, too: pytest-trio looks for a clock among a test's own arguments."""
    return open_house
