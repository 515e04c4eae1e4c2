"""A model runner on the mock clock, its workers in memory."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio

from mlxsup.config.schema import Model, Worker
from mlxsup.supervisor.events import EventBus
from mlxsup.supervisor.pool.life import WorkerSource
from mlxsup.supervisor.pool.runner import ModelRunner
from mlxsup.supervisor.pool.worker import open_worker
from tests.fakes.memory_worker import MemoryWorker, Plan, WorkerShop

CONFIG = Worker(exit_grace_s=5.0, term_grace_s=15.0, kill_grace_s=5.0)


class Stage(msgspec.Struct):
    runner: ModelRunner
    shop: WorkerShop
    states: list[str]

    @property
    def worker(self) -> MemoryWorker:
        """The newest."""
        return self.shop.workers[-1]


OpenStage = Callable[..., AbstractAsyncContextManager[Stage]]


@pytest.fixture
def open_stage() -> OpenStage:
    """Tests that use it take `autojump_clock`, too: pytest-trio looks for a clock among a test's own arguments."""

    @asynccontextmanager
    async def open_stage(*plans: Plan, model: Model | None = None) -> AsyncIterator[Stage]:
        events = EventBus()
        states: list[str] = []
        with events.subscribed(lambda event: states.append(event.what)):
            # Workers outlive the runner, which is to end them.
            async with trio.open_nursery() as workers, trio.open_nursery() as nursery:
                shop = WorkerShop(workers, *plans)

                async def locate() -> Path:
                    return Path("/model")

                source = WorkerSource(locate=locate, spawn=lambda h: open_worker(shop.spawn, CONFIG, h))
                runner = ModelRunner("m", model or Model(), CONFIG, source, events)
                nursery.start_soon(runner.run)
                yield Stage(runner, shop, states)
                nursery.cancel_scope.cancel()

    return open_stage
