"""Carries out the schedule: waits for the moment that an episode is about, and strikes."""

import math
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import msgspec
import trio

from mlxsup.protocol.client.aio import Client
from mlxsup.protocol.errors import RpcError
from scripts.soak.causes import NATURES, Cause, metal_words
from scripts.soak.history import History, Strike, Target
from scripts.soak.load import Load, SoakStuckError
from scripts.soak.schedule import Aim, Blow, Episode
from scripts.soak.sight import Sight, is_alive
from scripts.soak.worker import Command, obeys, tell

_POLL_S = 0.005
# From the end of a process to the event that tells of it, where it may also have been told to end.
_LATE_S = 1.0


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """Spans in seconds within which a blow's moment is drawn, until they have been seen; and `limit_s` for any wait."""

    decode_s: float
    prefill_s: float
    load_s: float
    warm_s: float
    drain_s: float
    double_s: float
    limit_s: float


class Scene(msgspec.Struct, frozen=True):
    """Where blows fall. `orders` is where workers look for what they are told to do to themselves."""

    client: Client
    load: Load
    history: History
    sight: Sight
    pace: Pace
    model: str
    other: str | None
    orders: Path


class Striker:
    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self.recycles = 0
        self.recycles_refused = 0

    async def run(
        self, schedule: Iterator[Episode], deaths: int, between: Callable[[], Awaitable[None]]
    ) -> None:
        """Until there were so many; `between` is awaited before each episode."""
        while len(self._scene.history.strikes) < deaths:
            await between()
            await self._play(next(schedule))

    async def _play(self, episode: Episode) -> None:
        await self.settle()
        if episode.patient:
            await self.wait_spare()
        match episode.aim:
            case Aim.DECODE:
                await self._at(self._scene.pace.decode_s, episode.blows[0])
                await self._strike_serving(episode.blows[0], episode.aim)
            case Aim.PREFILL:
                await self._prefills()
                await self._at(self._scene.pace.prefill_s, episode.blows[0])
                await self._strike_serving(episode.blows[0], episode.aim)
            case Aim.RESUMED | Aim.LOADING | Aim.WARMING | Aim.DOUBLE:
                await self._strike_twice(episode)
            case Aim.SPARE:
                await self._strike_spare(episode)
            case Aim.RECYCLED | Aim.SUCCESSOR | Aim.DRAINING:
                await self._strike_recycling(episode)

    async def settle(self) -> None:
        """Until the worker serves, all that was in flight goes on, and nobody is suspected any more."""
        scene = self._scene
        await scene.load.until(lambda: scene.history.flows, scene.pace.limit_s, "the streams go on")
        await self._worker()

    async def _prefills(self) -> None:
        history, limit_s = self._scene.history, self._scene.pace.limit_s
        await self._scene.load.until(lambda: history.computing == "prefill", limit_s, "a request begins")

    async def wait_spare(self) -> list[int]:
        workers = [pid for pid in await self._workers() if pid is not None]
        with trio.fail_after(self._scene.pace.limit_s):
            while True:
                spares = self._scene.sight.ready_spares(workers)
                if spares:
                    return spares
                await trio.sleep(10 * _POLL_S)

    # Episodes.

    async def _strike_twice(self, episode: Episode) -> None:
        first, second = episode.blows
        scene, history = self._scene, self._scene.history
        await self._at(scene.pace.decode_s, first)
        struck = await self._strike_serving(first, episode.aim, wait=episode.aim is not Aim.DOUBLE)
        if episode.aim is Aim.DOUBLE:
            await self._at(scene.pace.double_s, second)
        else:
            state, span_s = {
                Aim.LOADING: ("loading", self._seen("loading", "warming", scene.pace.load_s)),
                Aim.WARMING: ("warming", self._seen("warming", "ready", scene.pace.warm_s)),
                Aim.RESUMED: ("ready", self._seen_prefill(scene.pace.prefill_s)),
            }[episode.aim]
            reached = {"loading": {"loading", "warming", "ready"}, "warming": {"warming", "ready"}}
            states = reached.get(state, {"ready"})
            await scene.load.until(lambda: history.state in states, scene.pace.limit_s, state)
            await self._at(span_s, second)
        await self._strike_serving(second, episode.aim, after=struck.pid)

    async def _strike_spare(self, episode: Episode) -> None:
        spare = (await self.wait_spare())[0]
        strike = await self._hit(episode.blows[0], episode.aim, Target.SPARE, spare)
        await self._ended(strike)
        for blow in episode.blows[1:]:
            await self._strike_serving(blow, episode.aim)

    async def _strike_recycling(self, episode: Episode) -> None:
        scene, (blow,) = self._scene, episode.blows
        old = await self._worker()
        spares = await self.wait_spare()
        async with trio.open_nursery() as nursery:
            loads = trio.Event()
            nursery.start_soon(self._recycle, loads)
            if episode.aim is Aim.DRAINING:
                await self._replaced(old)
                await self._at(scene.pace.drain_s, blow)
                strike = await self._hit(blow, episode.aim, Target.OLD, old)
            else:
                # Before, it would still be the spare that nobody misses.
                with trio.fail_after(scene.pace.limit_s):
                    await loads.wait()
                await self._at(self._seen("loading", "ready", scene.pace.load_s), blow)
                serving = await self._worker()
                if episode.aim is Aim.SUCCESSOR:
                    target = Target.SERVING if serving == spares[0] else Target.SUCCESSOR
                    strike = await self._hit(blow, episode.aim, target, spares[0])
                else:
                    strike = await self._hit(
                        blow, episode.aim, Target.SERVING if serving == old else Target.OLD, old
                    )
            await self._ended(strike)

    async def _recycle(self, loads: trio.Event) -> None:
        """`loads` is set once the successor says that it does."""
        self.recycles += 1
        params = {"model": self._scene.model}
        try:
            await self._scene.client.call("model/recycle", params, on_progress=lambda _: loads.set())
        except RpcError:
            # The successor was struck: the caller is told, and nobody else notices.
            self.recycles_refused += 1
        loads.set()

    async def _replaced(self, old: int) -> None:
        await self._worker(other_than=old)
        await self._scene.load.until(
            lambda: self._scene.history.state == "ready", self._scene.pace.limit_s, "the successor serves"
        )

    # Blows.

    async def _strike_serving(
        self, blow: Blow, aim: Aim, *, after: int | None = None, wait: bool = True
    ) -> Strike:
        """Strike the model's worker, which is another one than `after`."""
        pid = await self._worker(other_than=after)
        strike = await self._hit(blow, aim, Target.SERVING, pid)
        if wait:
            await self._scene.load.until(
                lambda: strike.death_s is not None,
                self._scene.pace.limit_s,
                f"the supervisor tells of the death of {pid} by {blow.cause}",
            )
        return strike

    async def _hit(self, blow: Blow, aim: Aim, target: Target, pid: int) -> Strike:
        scene = self._scene
        if blow.inside:
            await self._obedient(pid)
        spares = frozenset(scene.sight.children()) - {pid}
        strike = scene.history.struck(
            blow, aim, target, pid, spares=spares, now_s=trio.current_time(), wall_s=time.time()
        )
        signal = NATURES[blow.cause].signal
        try:
            if blow.inside or signal is None:
                words = metal_words(blow.metal) if blow.cause is Cause.METAL else ""
                tell(scene.orders, pid, Command(blow.cause, words))
            else:
                os.kill(pid, signal)
        except ProcessLookupError:
            strike.too_late = True
        return strike

    async def _obedient(self, pid: int) -> None:
        with trio.fail_after(self._scene.pace.limit_s):
            while not obeys(self._scene.orders, pid) and is_alive(pid):  # noqa: ASYNC110  (a file tells nobody)
                await trio.sleep(_POLL_S)

    async def _ended(self, strike: Strike) -> None:
        """Until its death is told, or there was none to tell of: a spare's, or that of a worker that was ending."""
        deadline_s = trio.current_time() + self._scene.pace.limit_s
        gone_s = math.inf
        while strike.death_s is None and trio.current_time() < min(deadline_s, gone_s + _LATE_S):
            if gone_s == math.inf and not is_alive(strike.pid):
                gone_s = trio.current_time()
                if strike.target is Target.SPARE:
                    return
            await trio.sleep(_POLL_S)
        if gone_s == math.inf and strike.death_s is None:
            raise SoakStuckError(f"process {strike.pid} lives on after {strike.blow.cause}")
        strike.too_late = strike.death_s is None and strike.target is Target.OLD

    # What is where.

    async def _worker(self, other_than: int | None = None) -> int:
        """The pid of the struck model's worker, in whatever state."""
        with trio.fail_after(self._scene.pace.limit_s):
            while True:
                pid, _ = await self._workers()
                if pid is not None and pid != other_than:
                    self._scene.history.serves(pid)
                    return pid
                await trio.sleep(_POLL_S)

    async def _workers(self) -> tuple[int | None, int | None]:
        listed = await self._scene.client.call("model/list")
        pids = {entry.name: entry.pid for entry in listed.models}
        other = self._scene.other
        return pids.get(self._scene.model), pids.get(other) if other is not None else None

    async def _at(self, span_s: float, blow: Blow) -> None:
        await trio.sleep(span_s * blow.moment)

    def _seen(self, start: str, end: str, otherwise_s: float) -> float:
        """How long a phase has taken so far."""
        spans = [outage.between(start, end) for outage in self._scene.history.outages[-20:]]
        return statistics.median([span for span in spans if span is not None] or [otherwise_s])

    def _seen_prefill(self, otherwise_s: float) -> float:
        outages = self._scene.history.outages[-20:]
        return statistics.median(
            [o.first_text_s - o.marks["ready"] for o in outages if o.first_text_s] or [otherwise_s]
        )
