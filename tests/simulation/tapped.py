"""The supervisor's own parts with an ear at them: what they decide goes into the history."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from mlxsup.config.schema import Model
from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.models.names import Source
from mlxsup.supervisor.pool.life import Life, WorkerSource
from mlxsup.supervisor.pool.pool import Pool
from mlxsup.supervisor.pool.process import ChildProcess
from mlxsup.supervisor.pool.runner import ModelRunner
from mlxsup.supervisor.recovery.aftermath import Aftermath
from mlxsup.supervisor.recovery.classify import Evidence
from mlxsup.supervisor.recovery.death_report import DeathBookError
from mlxsup.supervisor.recovery.poison import QuarantinedRequest
from mlxsup.supervisor.recovery.recorder import DeathRecorder
from mlxsup.supervisor.residency.residency import Weights
from mlxsup.supervisor.service import Service
from tests.simulation.draw import MEMORY_BYTES
from tests.simulation.history import Death, Ended, GaveWay, Submitted

if TYPE_CHECKING:
    from tests.simulation.world import World

_DISK_FAILURES = 0.5


class SimulatedBook:
    """Keeps nothing; sometimes the disk is full."""

    def __init__(self, world: "World") -> None:
        self._world = world

    def write(self, _: object) -> None:
        self._reach_disk()

    def write_quarantined(self, _entry: object, _at: str) -> None:
        self._reach_disk()

    def forget_quarantined(self, *_: object) -> int:
        self._reach_disk()
        return 0

    def read_quarantined(self) -> list[QuarantinedRequest]:
        self._reach_disk()
        return []

    def _reach_disk(self) -> None:
        if self._world.schedule.disk_fails and self._world.rng.random() < _DISK_FAILURES:
            raise DeathBookError("database or disk is full")


class SimulatedRecorder(DeathRecorder):
    def __init__(self, world: "World", *args: Any) -> None:
        super().__init__(*args)
        self._world = world

    def worker_died(self, model: str, life: Life, evidence: Evidence, aftermath: Aftermath) -> None:
        assert life.worker is not None
        verdict = aftermath.verdict
        clear = self._world.schedule.config.recovery.suspect_tokens
        lost = [*aftermath.resumed, *aftermath.failed, *aftermath.quarantined]
        self._world.note(
            Death(
                at_s=trio.current_time(),
                model=model,
                pid=life.worker.pid,
                name=verdict.name,
                weight=aftermath.weight,
                blames=verdict.blames_request,
                resumes_max=verdict.resumes_max,
                wait_s=aftermath.wait_s,
                questions=life.questions,
                resumed=[request.id for request in aftermath.resumed],
                failed=[request.id for request in aftermath.failed],
                quarantined=[request.id for request in aftermath.quarantined],
                times_resumed={request.id: request.resumed for request in lost},
                fruitless={request.id: request.fruitless_resumes(clear) for request in lost},
            )
        )
        super().worker_died(model, life, evidence, aftermath)


class SimulatedPool(Pool):
    """The real one; its workers, their memory and its luck come from the world."""

    def __init__(self, world: "World", *args: Any, **kwargs: Any) -> None:
        self._world = world
        super().__init__(*args, **kwargs)

    def runner(self, name: str) -> ModelRunner:
        known = name in self._runners
        runner = super().runner(name)
        if not known:
            _tap_runner(self._world, runner)
        return runner

    def _worker_source(self, _: str, source: Source, __: Model) -> WorkerSource:
        async def locate() -> Path:
            await trio.to_thread.run_sync(int)
            if self._world.locate_fails():
                raise RpcError(ErrorKind.MODEL_NOT_FOUND, "the model is not here")
            return Path("/models") / getattr(source, "name", "?")

        async def weigh() -> Weights:
            await trio.to_thread.run_sync(int)
            return Weights(self._world.schedule.resident_bytes[getattr(source, "name", "?")])

        return WorkerSource(
            locate=locate,
            hatch=self._hatchery.hatch,
            observe=self._world.observe,
            available=self._available_bytes,
            weigh=weigh,
        )

    def _available_bytes(self) -> int:
        return self._world.available_bytes()

    def _total_bytes(self) -> int:
        return MEMORY_BYTES

    async def _spawn(self) -> ChildProcess:
        return await self._world.spawn()


def _tap_runner(world: "World", runner: ModelRunner) -> None:
    submit = runner.submit

    def submit_noted(request: GenerationRequest) -> None:
        sink: Any = request._sink
        entry = Submitted(
            at_s=trio.current_time(),
            key=world.clients[int(sink._connection.name)].last_key[sink.id],
            request=request.id,
            model=runner.name,
            queued_before=runner.queued,
            refused=None,
        )
        at = len(world.history)
        try:
            submit(request)
        except RpcError as error:
            entry.refused = error.kind.value
            raise
        finally:
            # What follows from it, an order above all, follows it.
            world.history.insert(at, entry)
            world.react(entry)

    scheduler = runner._scheduler
    go_behind = scheduler._go_behind

    def go_behind_noted(request: GenerationRequest) -> None:
        world.note(GaveWay(at_s=trio.current_time(), request=request.id))
        go_behind(request)

    vars(runner).update(submit=submit_noted)
    vars(scheduler).update(_go_behind=go_behind_noted)


def held_by(runner: ModelRunner) -> dict[str, int]:
    """What should be nothing when nobody waits for the model, and it is ready."""
    standing, workers, scheduler = runner._standing, runner._workers, runner._scheduler
    return {
        "requests in the queue": runner.queued,
        "requests in flight": len(scheduler._flights),
        "admissions": len(runner.gate._admissions),
        "suspects": len(scheduler._poison._suspects) + len(scheduler._poison._isolated),
        "waiting loads": standing.attempt.waiters,
        "lives beyond one": max(0, len(workers._lives) - 1),
    }


def tap_service(world: "World", service: Service) -> None:
    request_ended = service.texts.request_ended

    def request_ended_noted(request: GenerationRequest, outcome: str) -> None:
        world.note(Ended(at_s=trio.current_time(), request=request.id, outcome=outcome))
        request_ended(request, outcome)

    vars(service.texts).update(request_ended=request_ended_noted)
