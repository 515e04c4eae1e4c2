"""One soak from beginning to end: a supervisor, its load, the blows, and what is left afterwards."""

import itertools
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import trio

from mlxsup.config.schema import Model
from mlxsup.config.schema import Worker as WorkerConfig
from mlxsup.protocol.client.aio import Client, ConnectionLostError, connect
from mlxsup.supervisor.recovery.death_report import DeathBook
from scripts.benchmarks.supervisor_child import LOG, Say, SupervisorChild, running_supervisor
from scripts.soak.bare_start import BareStart, start_bare
from scripts.soak.history import History
from scripts.soak.load import Load, SoakStuckError
from scripts.soak.orders import Order, drawn, model_params, scripted_orders
from scripts.soak.schedule import episodes
from scripts.soak.setting import MODEL, OTHER, Soak, numbered
from scripts.soak.sight import Holdings, Sight, noticed_stalls
from scripts.soak.striker import Scene, Striker
from scripts.soak.undisturbed import Watched, undisturbed, watch

_ORDERS = 16
_PROGRESS_S = 10.0
_QUIESCE_S = 20.0
_REPORTS_MAX = 1_000_000


class Findings(msgspec.Struct, kw_only=True):
    """What was seen, to be judged. `resident` are samples: deaths so far, and bytes of the supervisor."""

    history: History
    bare: list[BareStart] = []
    resident: list[tuple[int, int]] = []
    before: Holdings | None = None
    after: Holdings | None = None
    other_pids: list[int | None] = []
    active_at_end: int = 0
    reported: int = 0
    leftovers: list[int] = []
    noticed: list[tuple[int, float]] = []
    recycles: int = 0
    recycles_refused: int = 0
    unstable: list[dict[str, Any]] = []
    trouble: str | None = None
    interrupted: bool = False
    seconds: float = 0.0


def run_soak(soak: Soak, folder: Path, model_folder: Path, say: Say) -> Findings:
    """In `folder` stay the configuration, the log and the death reports."""
    findings = Findings(history=History(MODEL))
    orders = folder / "orders"
    orders.mkdir()
    watched = None
    if soak.model is not None:
        say(f"computing {_ORDERS} texts, to find those that rounding decides")
        watched = watch(soak, folder / "watched", model_folder, model_params(soak.seed, _ORDERS))
    began_s = time.monotonic()
    with running_supervisor(folder, soak.tables(orders, model_folder), {"HOME": str(folder)}) as child:
        sight = Sight(child.process, folder)
        trio.run(_Run(soak, child, sight, orders, model_folder, watched, findings, say).run)
    findings.seconds = time.monotonic() - began_s
    findings.leftovers = sight.leftovers()
    findings.noticed = noticed_stalls(folder / LOG)
    reports = DeathBook(folder / "deaths.sqlite", _REPORTS_MAX).read(limit=_REPORTS_MAX)
    findings.reported = len(reports)
    return findings


class _Run:
    def __init__(
        self,
        soak: Soak,
        child: SupervisorChild,
        sight: Sight,
        orders: Path,
        model_folder: Path,
        watched: Watched | None,
        findings: Findings,
        say: Say,
    ) -> None:
        self._soak = soak
        self._child = child
        self._sight = sight
        self._orders = orders
        self._model_folder = model_folder
        self._watched = watched
        self._findings = findings
        self._say = say
        self._bare_due = 0
        self._catalogue: list[Order] = []
        self._striking = trio.CancelScope()

    async def run(self) -> None:
        try:
            async with connect(self._child.socket) as client, self._interruptible():
                await self._run(client)
        except* (ConnectionLostError, SoakStuckError, trio.TooSlowError) as group:
            self._findings.trouble = self._findings.trouble or _first_words(group)

    async def _run(self, client: Client) -> None:
        soak, findings = self._soak, self._findings
        self._load = Load(client, findings.history, soak.pace.limit_s)
        await self._load.listen()
        other = OTHER if soak.other_streams else None
        self._scene = Scene(
            client,
            self._load,
            findings.history,
            self._sight,
            soak.pace,
            MODEL,
            other,
            self._orders,
        )
        self._striker = Striker(self._scene)
        self._say("loading the models")
        for model in filter(None, (MODEL, other)):
            await client.call("model/load", {"model": model})
        with self._until_tired():
            await self._prepare()
        if findings.interrupted:
            return
        await self._striker.wait_spare()
        findings.before = self._sight.holdings()
        findings.other_pids.append(await self._other_pid(client))
        await self._strike()
        self._say("the last streams end")
        await self._quiesce(client)

    async def _prepare(self) -> None:
        """The texts that a real model gives where nothing dies."""
        if self._watched is None:
            return
        soak = self._soak
        self._say("computing them again, while nothing dies")
        found = await undisturbed(self._scene.client, self._watched, soak.streams, soak.pace.limit_s)
        self._catalogue, self._findings.unstable = found.orders, found.unstable

    def _stream(self, seed: int) -> itertools.chain[Order]:
        orders = scripted_orders(seed) if self._soak.model is None else drawn(self._catalogue, seed)
        return itertools.chain(orders)

    async def _strike(self) -> None:
        """The load, and blows upon it, until there were enough or somebody is tired of it."""
        soak, findings, load = self._soak, self._findings, self._load
        async with trio.open_nursery() as nursery:
            for seed in numbered(soak.seed, soak.streams):
                nursery.start_soon(load.keep_asking, MODEL, self._stream(seed))
            for seed in numbered(-1 - soak.seed, soak.other_streams):
                nursery.start_soon(load.keep_asking, OTHER, self._stream(seed))
            async with trio.open_nursery() as aside:
                aside.start_soon(self._report_progress)
                try:
                    with self._until_tired():
                        await self._striker.run(episodes(soak.seed, soak.causes), soak.deaths, self._between)
                        await self._striker.settle()
                except (SoakStuckError, trio.TooSlowError, ConnectionLostError) as error:
                    findings.trouble = f"{type(error).__name__}: {error}"
                findings.recycles = self._striker.recycles
                findings.recycles_refused = self._striker.recycles_refused
                aside.cancel_scope.cancel()
            load.stop()

    async def _between(self) -> None:
        """Between two episodes: how much the supervisor holds, and now and then a bare start beside it."""
        deaths = len(self._findings.history.strikes)
        self._findings.resident.append((deaths, self._sight.resident_bytes()))
        if deaths < self._bare_due:
            return
        self._bare_due = deaths + self._soak.bare_every
        history, load, limit_s = self._findings.history, self._load, self._soak.pace.limit_s
        await self._striker.settle()
        # The other model's streams go on, as they do while a worker recovers.
        load.pause(MODEL)
        await load.until(lambda: not history.in_flight(), limit_s, "the streams pause")
        await self._striker.wait_spare()
        keys = self._soak.worker_keys(self._orders)
        orders = list(itertools.islice(self._stream(self._soak.seed + deaths), self._soak.streams))
        self._findings.bare.append(
            await start_bare(
                msgspec.convert(keys, WorkerConfig), Model(), self._model_folder, self._sight.home, orders
            )
        )
        load.resume(MODEL)

    async def _quiesce(self, client: Client) -> None:
        """Until the supervisor holds what it held at first, or it is clear that it holds more."""
        findings = self._findings
        findings.other_pids.append(await self._other_pid(client))
        stats = await client.call("server/stats")
        findings.active_at_end = stats.overall.requests_active + stats.overall.requests_queued
        await self._striker.wait_spare()
        with trio.move_on_after(_QUIESCE_S):
            while True:
                findings.after = self._sight.holdings()
                if findings.before is not None and findings.after.is_no_more_than(findings.before):
                    return
                await trio.sleep(0.2)

    async def _other_pid(self, client: Client) -> int | None:
        listed = await client.call("model/list")
        return next((entry.pid for entry in listed.models if entry.name == OTHER), None)

    async def _report_progress(self) -> None:
        history = self._findings.history
        while True:
            await trio.sleep(_PROGRESS_S)
            ended = sum(asked.ended for asked in history.asked.values())
            wrong = sum(bool(asked.error or asked.faults) for asked in history.asked.values())
            self._say(
                f"{len(history.strikes)} of {self._soak.deaths} deaths; {ended} requests ended, {wrong} of them wrong"
            )

    @asynccontextmanager
    async def _interruptible(self) -> AsyncIterator[None]:
        """The first Ctrl-C ends the blows, and what runs is waited for; the second one ends everything."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._watch_signals, nursery.cancel_scope)
            yield
            nursery.cancel_scope.cancel()

    def _until_tired(self) -> trio.CancelScope:
        """Around what the first Ctrl-C ends."""
        self._striking = trio.CancelScope()
        if self._findings.interrupted:
            self._striking.cancel()
        return self._striking

    async def _watch_signals(
        self,
        everything: trio.CancelScope,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as arrivals:
            task_status.started()
            async for _ in arrivals:
                if self._findings.interrupted:
                    everything.cancel()
                self._findings.interrupted = True
                self._say("interrupted: what runs still ends; once more to leave at once")
                self._striking.cancel()


def _first_words(group: BaseExceptionGroup[BaseException]) -> str:
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return f"{type(first).__name__}: {first}"
