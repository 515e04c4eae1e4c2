"""The supervisor put together: the pool, the service, and their orderly end."""

import logging
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import trio

from mlxsup.config.schema import Config, Recovery
from mlxsup.protocol.descriptors import Pipes
from mlxsup.protocol.errors import RpcError
from mlxsup.protocol.service import Event
from mlxsup.supervisor.endpoint.connection import Connection
from mlxsup.supervisor.endpoint.descriptor_limit import descriptors_needed, raise_descriptor_limit
from mlxsup.supervisor.endpoint.streams import StdioByteStream
from mlxsup.supervisor.endpoint.unix_server import FINISH_S, UnixServer, bound_socket
from mlxsup.supervisor.events import EventBus
from mlxsup.supervisor.models.store import Store
from mlxsup.supervisor.pool.lifecycle import WorkerState
from mlxsup.supervisor.pool.pool import Pool
from mlxsup.supervisor.qos.runner_levers import RunnerLevers
from mlxsup.supervisor.qos.watch import SloWatch
from mlxsup.supervisor.recovery.death_report import DeathBook, DeathBookError
from mlxsup.supervisor.recovery.panics import gpu_panics
from mlxsup.supervisor.recovery.poison import QuarantinedRequest
from mlxsup.supervisor.recovery.recorder import DeathRecorder
from mlxsup.supervisor.service import Service

_log = logging.getLogger(__name__)


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What a supervisor is started with. Relative model folders are relative to `config_folder`."""

    config: Config
    config_folder: Path
    cache: Path
    state: Path


@asynccontextmanager
async def open_supervisor(setting: Setting) -> AsyncIterator[Service]:
    """A running supervisor; at the end of the block requests are drained for `service.drain_s`, and workers end.

    SIGINT and SIGTERM ask for a shutdown; a second one ends the draining.
    """
    async with trio.open_nursery() as nursery:
        events = EventBus()
        store = Store(setting.cache)
        book = DeathBook(setting.state / "deaths.sqlite", setting.config.recovery.reports_max)
        recorder = DeathRecorder(book, events, setting.config.recovery.reports_flush_s)
        nursery.start_soon(recorder.run)
        pool = Pool(
            setting.config,
            setting.config_folder,
            store,
            events,
            nursery,
            witness=recorder,
            quarantined=await trio.to_thread.run_sync(_known_quarantined, book),
            prefix_folder=setting.state / "prefixes",
        )
        panicked = await _panicked(setting.config.recovery)
        if panicked:
            pool.hold(setting.config.recovery.panic_hold_s)
        slos = SloWatch(
            setting.config.models,
            setting.config.qos,
            RunnerLevers(pool.runner, events, nursery, setting.config.qos.cooldown_s),
            trio.current_time(),
        )
        service = Service(setting.config, pool, store, events, slos, nursery)
        await nursery.start(_watch_signals, service)
        nursery.start_soon(_keep_spares, pool, events)
        nursery.start_soon(slos.run)
        for name, model in setting.config.models.items():
            if model.preload and not panicked:
                nursery.start_soon(_preload, pool, name)
        try:
            yield service
        finally:
            with trio.CancelScope(shield=True):
                service.shutdown_asked.set()
                await _close(pool, service.drain_s, service.hurry)
            nursery.cancel_scope.cancel()


async def _close(pool: Pool, drain_s: float, hurry: trio.Event) -> None:
    async with trio.open_nursery() as closing:
        for runner in pool.runners():
            closing.start_soon(runner.close, drain_s, hurry)


async def _watch_signals(
    service: Service, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as arrivals:
        task_status.started()
        async for number in arrivals:
            name = signal.Signals(number).name
            if service.shutdown_asked.is_set():
                _log.warning("%s again: ending what still runs", name)
                service.hurry.set()
            else:
                _log.info("%s: shutting down once running requests have ended; again to end them now", name)
                service.shutdown_asked.set()


async def _keep_spares(pool: Pool, events: EventBus) -> None:
    """Once a worker is ready: before, a spare would only slow its load down."""
    ready = trio.Event()

    def listen(event: Event) -> None:
        if event.what == WorkerState.READY:
            ready.set()

    with events.subscribed(listen):
        await ready.wait()
    await pool.keep_spares()


async def _panicked(recovery: Recovery) -> bool:
    """Whether the machine keeps going down: another worker at once might be what takes it down again."""
    panics = await trio.to_thread.run_sync(gpu_panics, time.time() - recovery.panic_window_s)
    if panics <= recovery.panics_max:
        return False
    _log.error(
        "the GPU's driver has taken this machine down %d times within %.0f s: no request is accepted for %.0f s; "
        "`mlxsup load` a model to go on at once",
        panics,
        recovery.panic_window_s,
        recovery.panic_hold_s,
    )
    return True


def _known_quarantined(book: DeathBook) -> list[QuarantinedRequest]:
    try:
        return book.read_quarantined()
    except DeathBookError as error:
        _log.error("cannot read what was quarantined before: %s", error)
        return []


async def _preload(pool: Pool, name: str) -> None:
    try:
        await pool.runner(name).ensure_ready()
    except RpcError as error:
        _log.error("cannot preload %s: %s", name, error)


async def serve_socket(setting: Setting, path: Path) -> None:
    """Serve on a Unix socket until somebody asks for a shutdown.

    Raises:
        SocketUnusableError: the socket can't be had.
    """
    raise_descriptor_limit(descriptors_needed(setting.config))
    with bound_socket(path) as listening:
        async with trio.open_nursery() as nursery:
            # Clients are served until the workers have ended: what is drained reaches them.
            async with open_supervisor(setting) as service:
                server = UnixServer(service)
                nursery.start_soon(server.serve, listening)
                _log.info("listening on %s", path)
                await service.shutdown_asked.wait()
            server.finish()


async def serve_stdio(setting: Setting, pipes: Pipes) -> None:
    """Serve one client on `pipes` until its input ends and it is answered, or somebody asks for a shutdown."""
    stream = StdioByteStream(*pipes)
    try:
        async with trio.open_nursery() as nursery:
            async with open_supervisor(setting) as service:
                connection = Connection(stream, service, "stdio")
                nursery.start_soon(_serve_until_end, connection, service)
                await service.shutdown_asked.wait()
            connection.shut_down()
            nursery.cancel_scope.deadline = trio.current_time() + FINISH_S
    finally:
        stream.restore()
    if connection.lost_output:
        raise OutputLostError("nobody reads the answers: they are lost")


class OutputLostError(Exception):
    """Whoever was to read stdout has gone before everything was written."""


async def _serve_until_end(connection: Connection, service: Service) -> None:
    service.connections += 1
    await connection.run()
    service.shutdown_asked.set()
