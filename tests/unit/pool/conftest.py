"""A model runner on the mock clock, its workers in memory."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio

from mlxsup.config.schema import Memory, Model, Recovery, Scheduling, Worker
from mlxsup.protocol.service import Event
from mlxsup.supervisor.events import EventBus
from mlxsup.supervisor.pool.hatchery import Hatchery
from mlxsup.supervisor.pool.life import Life, WorkerSource
from mlxsup.supervisor.pool.process import Observation
from mlxsup.supervisor.pool.runner import ModelRunner
from mlxsup.supervisor.recovery.aftermath import Aftermath
from mlxsup.supervisor.recovery.breaker import CircuitBreaker
from mlxsup.supervisor.recovery.classify import Evidence
from mlxsup.supervisor.recovery.limits import machine_limits
from mlxsup.supervisor.recovery.poison import PoisonWatch, QuarantinedRequest
from mlxsup.supervisor.residency.residency import Residency, Weights
from tests.fakes.memory_worker import MemoryWorker, Plan, WorkerShop

SEED = 7
CONFIG = Worker(exit_grace_s=5.0, term_grace_s=15.0, kill_grace_s=5.0, spares=0)


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(3600):
        while not condition():  # noqa: ASYNC110  (any condition of a test's own, on the mock clock)
            await trio.sleep(0.05)


class Notes:
    """A witness that keeps what it is told."""

    def __init__(self) -> None:
        self.deaths: list[tuple[Life, Evidence, Aftermath]] = []
        self.quarantined: list[QuarantinedRequest] = []

    def worker_died(self, _model: str, life: Life, evidence: Evidence, aftermath: Aftermath) -> None:
        self.deaths.append((life, evidence, aftermath))

    def request_quarantined(self, entry: QuarantinedRequest) -> None:
        self.quarantined.append(entry)

    def requests_forgiven(self, _model: str | None) -> None:
        self.quarantined.clear()


class Stage(msgspec.Struct):
    runner: ModelRunner
    shop: WorkerShop
    states: list[str]
    entered_s: list[float]
    """When each of `states` was entered."""
    reactions: dict[str, Callable[[], None]]
    """What is done at once when a state is entered."""
    notes: Notes
    memory: dict[str, int]
    """`resident` of every worker and `available` of the machine, in bytes; change it at will."""

    @property
    def worker(self) -> MemoryWorker:
        """The newest."""
        return self.shop.workers[-1]

    @property
    def classes(self) -> list[str]:
        return [aftermath.verdict.name for _, _, aftermath in self.notes.deaths]

    def times_s(self, state: str) -> list[float]:
        return [at_s for name, at_s in zip(self.states, self.entered_s, strict=True) if name == state]

    async def wait_entered(self, state: str, times: int = 1) -> float:
        """When it is entered for so many times, counted from the beginning."""
        await until(lambda: len(self.times_s(state)) >= times)
        return self.times_s(state)[times - 1]

    async def wait_state(self, state: str) -> None:
        await until(lambda: self.runner.snapshot().state == state)


OpenStage = Callable[..., AbstractAsyncContextManager[Stage]]


@asynccontextmanager
async def open_stage(
    *plans: Plan, model: Model | None = None, recovery: Recovery | None = None, config: Worker = CONFIG
) -> AsyncIterator[Stage]:
    recovery = recovery or Recovery()
    events = EventBus()
    states: list[str] = []
    entered_s: list[float] = []
    reactions: dict[str, Callable[[], None]] = {}
    notes = Notes()
    memory = {"resident": 100, "available": 10**12}

    def note(event: Event) -> None:
        states.append(event.what)
        entered_s.append(trio.current_time())
        reactions.get(event.what, lambda: None)()

    with events.subscribed(note):
        # Workers outlive the runner, which is to end them.
        async with trio.open_nursery() as workers, trio.open_nursery() as nursery:
            shop = WorkerShop(workers, *plans)

            async def locate() -> Path:
                return Path("/model")

            def observe(pid: int) -> Observation:
                return Observation(memory["resident"], memory["available"], shop.by_pid(pid).stopped)

            async def weigh() -> Weights:
                return Weights(memory["resident"])

            residency = Residency(
                Memory(),
                headroom_bytes=recovery.headroom_bytes,
                blocked_s=recovery.memory_wait_s,
                spares=config.spares,
                total_bytes=10**13,
                available=lambda: memory["available"],
            )
            nursery.start_soon(residency.run)
            hatchery = Hatchery(shop.spawn, config, nursery)
            runner = ModelRunner(
                "m",
                model or Model(),
                config,
                recovery,
                Scheduling(),
                WorkerSource(
                    locate=locate,
                    hatch=hatchery.hatch,
                    observe=observe,
                    available=lambda: memory["available"],
                    weigh=weigh,
                ),
                events,
                witness=notes,
                machine=CircuitBreaker(machine_limits(recovery)),
                poison=PoisonWatch(
                    recovery.suspect_tokens, recovery.quarantine_max, recovery.suspect_memory_s
                ),
                rng=random.Random(SEED),
                residency=residency,
            )
            nursery.start_soon(runner.run)
            nursery.start_soon(hatchery.keep_spares)
            yield Stage(runner, shop, states, entered_s, reactions, notes, memory)
            nursery.cancel_scope.cancel()


@pytest.fixture(name="open_stage")
def _open_stage() -> OpenStage:
    """Tests that use it take `autojump_clock`, too: pytest-trio looks for a clock among a test's own arguments."""
    return open_stage
