"""One schedule played: a whole supervisor, its clients and its workers, and a history of what happened.

What is real: everything from a connection's bytes to the frames on a worker's pipes. What is not: processes, threads,
signals, the disk, the clock.
"""

import errno
import logging
import random
import signal
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import trio

from mlxsup.protocol.service import Event
from mlxsup.supervisor.application import Setting, open_supervisor
from mlxsup.supervisor.events import EventBus
from mlxsup.supervisor.pool.life import Life
from mlxsup.supervisor.pool.process import Observation
from tests.simulation.client import SimulatedClient, SimulatedServer
from tests.simulation.draw import GB, MEMORY_BYTES
from tests.simulation.finale import Finale
from tests.simulation.history import Entry, Found, Given, History, Logged, Phase, State
from tests.simulation.schedule import (
    Act,
    Cancel,
    EndInput,
    Fate,
    Leave,
    Poison,
    Schedule,
    Send,
    Strike,
)
from tests.simulation.stage import HungError, Machine, run_by_seed, staged
from tests.simulation.tapped import SimulatedBook, SimulatedPool, SimulatedRecorder, tap_service
from tests.simulation.worker import SimulatedWorker

# Above any pid that a kernel gives: who asks the real system about one learns that there is none.
_FIRST_PID = 10_000_001
# What any schedule takes, with all its patience; reached only by what hangs.
_LIMIT_S = 5000.0
_SPARE_BYTES = GB // 10


def play(schedule: Schedule, *, with_logs: bool = False) -> History:
    """What happens by `schedule`. Whatever goes wrong is in it, as the last thing."""
    world = World(schedule)
    handler = _LogNotes(world)
    log = logging.getLogger("mlxsup")
    before = log.level
    if with_logs:
        log.addHandler(handler)
        log.setLevel(logging.INFO)
    try:
        with staged(world):
            run_by_seed(schedule.seed, world.main, _LIMIT_S)
    except HungError as error:
        world.find(str(error))
    except Exception as error:  # noqa: BLE001  (a supervisor that crashes is a finding like any other)
        world.find("".join(traceback.format_exception(error)))
    finally:
        log.removeHandler(handler)
        log.setLevel(before)
    return world.history


class World(Machine):
    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.history: History = []
        self.workers: list[SimulatedWorker] = []
        self.calm = False
        self.rng = random.Random(schedule.seed)
        self._fates = list(reversed(schedule.fates))
        self._poisons = {poison.prompt: poison for poison in schedule.poisons}
        self._seen: Counter[str] = Counter()
        self._located = 0
        # Kept, or it would end where it began.
        self._subscription = ExitStack()
        self._send_signal, self._arrivals = trio.open_memory_channel[int](10)
        self.clients = [
            SimulatedClient(number, self, slow=number in schedule.slow_clients)
            for number in range(schedule.clients)
        ]

    # The history.

    def note(self, entry: Entry) -> None:
        self.history.append(entry)
        self.react(entry)

    def react(self, entry: Entry) -> None:
        on = entry.trigger
        if on is None or self.calm:
            return
        self._seen[on] += 1
        for reaction in self.schedule.reactions:
            if reaction.on == on and reaction.nth == self._seen[on]:
                self._acting.start_soon(self._act_after, reaction.after_s, reaction.act)

    def find(self, what: str) -> None:
        if trio.lowlevel.in_trio_run():
            at_s = trio.current_time()
        else:
            at_s = self.history[-1].at_s if self.history else 0.0
        self.note(Found(at_s=at_s, what=what))

    def phase(self, name: str, drain_s: float = 0.0) -> None:
        self.note(Phase(at_s=trio.current_time(), name=name, drain_s=drain_s))

    def take_event(self, event: Event) -> None:
        if event.topic == "worker":
            generation = event.detail["generation"]
            self.note(
                State(
                    at_s=trio.current_time(), model=event.model, state=str(event.what), generation=generation
                )
            )

    # The play.

    async def main(self) -> None:
        setting = Setting(
            config=self.schedule.config,
            config_folder=Path("/config"),
            cache=Path("/cache"),
            state=Path("/state"),
        )
        # Workers outlive the supervisor, which is to end them; clients read until their connections are closed.
        async with trio.open_nursery() as self._living, trio.open_nursery() as reading:
            for client in self.clients:
                reading.start_soon(client.read)
            async with trio.open_nursery() as self._acting:
                await self._serve(setting)
                self._acting.cancel_scope.cancel()
            self.phase("over")
            for worker in self.workers:
                self._look_at(worker)
            self._living.cancel_scope.cancel()

    async def _serve(self, setting: Setting) -> None:
        async with trio.open_nursery() as serving:
            async with open_supervisor(setting) as service:
                tap_service(self, service)
                server = SimulatedServer(service)
                serving.start_soon(server.run, self.clients)
                self._acting.start_soon(self._act)
                self._acting.start_soon(Finale(self, service).run)
                await service.shutdown_asked.wait()
                self.phase("shutdown", service.drain_s)
                self._acting.start_soon(self._hurry)
            self.phase("closed")
            server.finish()

    async def _hurry(self) -> None:
        if self.schedule.hurry_after_s is not None:
            await trio.sleep(self.schedule.hurry_after_s)
            self.terminate()

    async def _act(self) -> None:
        for timed in self.schedule.acts:
            await trio.sleep_until(timed.at_s)
            await self.do(timed.act)

    async def _act_after(self, after_s: float, act: Act) -> None:
        await trio.sleep(after_s)
        if not self.calm:
            await self.do(act)

    async def do(self, act: Act) -> None:
        match act:
            case Send():
                await self.clients[act.client].ask(act.calls)
            case Cancel():
                await self.clients[act.client].cancel(act.key)
            case Leave():
                await self.clients[act.client].leave()
            case EndInput():
                await self.clients[act.client].end_input()
            case Strike():
                self._strike(act)
            case _:
                self.terminate()

    def _strike(self, act: Strike) -> None:
        alive = [worker for worker in reversed(self.workers) if worker.returncode is None]
        for model in (act.model, None):
            for worker in alive:
                if worker.model == model:
                    worker.strike(act.fault, act.cause)
                    return

    def terminate(self) -> None:
        self._send_signal.send_nowait(signal.SIGTERM)

    def calm_down(self) -> None:
        self.calm = True
        for worker in self.workers:
            worker.get_well()
        self.phase("calm")

    def _look_at(self, worker: SimulatedWorker) -> None:
        """Once the supervisor is gone."""
        if worker.undead:
            return
        if worker.returncode is None:
            self.find(f"worker {worker.pid} outlives the supervisor")
        elif not worker.waited:
            self.find(f"worker {worker.pid} is a zombie: nobody has waited for it")
        elif not worker.pipes_closed:
            self.find(f"pipes of worker {worker.pid} are left open")

    # What the supervisor finds at its edges.

    def make_pool(self, *args: Any, **kwargs: Any) -> SimulatedPool:
        return SimulatedPool(self, *args, **kwargs)

    def make_book(self, *_: object) -> SimulatedBook:
        return SimulatedBook(self)

    def make_recorder(self, book: SimulatedBook, events: EventBus, flush_s: float) -> SimulatedRecorder:
        self._subscription.enter_context(events.subscribed(self.take_event))
        return SimulatedRecorder(self, book, events, flush_s)

    def note_given(self, life: Life, id: int, _: object) -> None:
        assert life.worker is not None
        self.note(Given(at_s=trio.current_time(), pid=life.worker.pid, request=id))

    @contextmanager
    def open_signals(self, *_: object) -> Iterator[AsyncIterator[int]]:
        yield self._arrivals

    def gpu_panics(self, *_: object) -> int:
        return self.schedule.panics

    async def run_in_thread(self, function: Callable[..., Any], *args: Any, **_: Any) -> Any:
        await trio.lowlevel.checkpoint_if_cancelled()
        await self.take_time(self.schedule.disk_s * self.rng.random())
        return function(*args)

    async def take_time(self, time_s: float) -> None:
        """As a thread does: whoever waits for it can't be cancelled."""
        with trio.CancelScope(shield=True):
            await trio.sleep(time_s)

    async def spawn(self) -> SimulatedWorker:
        fate = self._fates.pop() if self._fates and not self.calm else Fate()
        await trio.lowlevel.checkpoint_if_cancelled()
        await self.take_time(fate.spawn_s)
        if fate.spawn_fails:
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        beat_s = self.schedule.config.worker.heartbeat_interval_s
        worker = SimulatedWorker(_FIRST_PID + len(self.workers), fate, beat_s, self)
        self.workers.append(worker)
        self._living.start_soon(worker.live)
        return worker

    def locate_fails(self) -> bool:
        self._located += 1
        return self._located in self.schedule.locate_fails and not self.calm

    def poison(self, prompt: str | None) -> Poison | None:
        return self._poisons.get(prompt or "")

    def observe(self, pid: int) -> Observation:
        worker = self.workers[pid - _FIRST_PID]
        return Observation(self._resident_bytes(worker), self.available_bytes(), worker.stopped)

    def available_bytes(self) -> int:
        now_s = trio.current_time()
        taken = sum(
            shortage.taken_bytes
            for shortage in self.schedule.shortages
            if shortage.from_s <= now_s < shortage.to_s
        )
        return max(0, MEMORY_BYTES - taken - sum(map(self._resident_bytes, self.workers)))

    def _resident_bytes(self, worker: SimulatedWorker) -> int:
        if worker.returncode is not None:
            return 0
        return _SPARE_BYTES if worker.model is None else self.schedule.resident_bytes[worker.model]


class _LogNotes(logging.Handler):
    def __init__(self, world: World) -> None:
        super().__init__(logging.INFO)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        at_s = trio.current_time() if trio.lowlevel.in_trio_run() else 0.0
        self._world.note(Logged(at_s=at_s, level=record.levelname, text=text))
