"""What the methods about the server do, whatever the transport."""

import os
import sys
import time
from importlib.metadata import version
from typing import Any

import trio

from mlxsup.config.schema import Config
from mlxsup.protocol import openrpc, service
from mlxsup.protocol.errors import ErrorKind, RpcError, shorten
from mlxsup.protocol.methods import PROTOCOL_VERSION
from mlxsup.supervisor.embedding.method import EmbedMethod
from mlxsup.supervisor.events import EventBus
from mlxsup.supervisor.measure.worker_counters import WorkerTally
from mlxsup.supervisor.model_methods import Caller, Handler, ModelMethods
from mlxsup.supervisor.models.store import Store
from mlxsup.supervisor.pool.lifecycle import WorkerState
from mlxsup.supervisor.pool.pool import Pool
from mlxsup.supervisor.pool.process import resident_bytes
from mlxsup.supervisor.pool.runner import ModelRunner
from mlxsup.supervisor.qos.watch import SloWatch
from mlxsup.supervisor.text_requests import TextRequests

# Each look-up parses a package's metadata.
_VERSIONS = {name: version(name) for name in ("mlxsup", "mlx", "mlx-lm")}


class Service:
    """`shutdown_asked` is set once somebody wants the supervisor to end; `drain_s` says how gently.

    `hurry` is set by whoever asks a second time, and wants no more of that.
    """

    def __init__(
        self,
        config: Config,
        pool: Pool,
        store: Store,
        events: EventBus,
        slos: SloWatch,
        nursery: trio.Nursery,
    ) -> None:
        self._config = config
        self._pool = pool
        self._events = events
        self._slos = slos
        self._workers = WorkerTally()
        events.subscribe(self._workers.take)
        self._started_s = time.monotonic()
        self.connections = 0
        # Of the params of all requests that are not answered yet.
        self.params_bytes = 0
        self.shutdown_asked = trio.Event()
        self.hurry = trio.Event()
        self.drain_s = config.server.drain_s
        self.texts = TextRequests(
            config, pool, slos, nursery, closing=self.shutdown_asked, hold_params=self.hold_params
        )
        self.handlers: dict[str, Handler] = {
            "server/info": self._info,
            "server/health": self._health,
            "server/stats": self._stats,
            "server/subscribe": self._subscribe,
            "server/shutdown": self._shutdown,
            "rpc.discover": self._discover,
            "embed": EmbedMethod(config, self.texts),
            **ModelMethods(config, pool, store).handlers,
        }

    @property
    def events(self) -> EventBus:
        return self._events

    @property
    def config(self) -> Config:
        return self._config

    def hold_params(self, count: int) -> None:
        """So many bytes more; fewer, if it is below zero."""
        self.params_bytes += count

    async def _info(self, _: service.NoParams, __: Caller) -> service.ServerInfo:
        config = self._config
        hello = next((s.hello for r in self._pool.runners() if (s := r.snapshot()).hello), None)
        return service.ServerInfo(
            name="mlxsup",
            version=_VERSIONS["mlxsup"],
            protocol_version=PROTOCOL_VERSION,
            platform=f"{sys.platform}-{os.uname().machine}",
            device=hello.device if hello else None,
            mlx_version=_VERSIONS["mlx"],
            mlx_lm_version=_VERSIONS["mlx-lm"],
            limits=service.Limits(
                frame_bytes_max=config.server.frame_bytes_max,
                batch_calls_max=config.server.batch_calls_max,
                in_flight_requests_max=config.server.in_flight_requests_max,
                queue_requests_max=max(model.queue_requests_max for model in config.models.values()),
                max_tokens_default=config.generation.max_tokens,
                embed_inputs_max=config.server.embed_inputs_max,
            ),
        )

    async def _health(self, _: service.NoParams, __: Caller) -> service.Health:
        models = {runner.name: _model_health(runner) for runner in self._pool.runners()}
        usable = any(health.ready for health in models.values())
        return service.Health(live=True, ready=usable and not self.shutdown_asked.is_set(), models=models)

    async def _stats(self, _: service.NoParams, __: Caller) -> service.Stats:
        runners = self._pool.runners()
        by_priority: dict[str, int] = {}
        for runner in runners:
            for priority, count in runner.queued_by_priority().items():
                by_priority[priority] = by_priority.get(priority, 0) + count
        now_s = trio.current_time()
        by_model = {runner.name: runner.queued for runner in runners}
        overall, models, priorities = self.texts.counters.read(by_model, by_priority, now_s)
        ledger = self._pool.residency.ledger
        return service.Stats(
            supervisor=service.SupervisorStats(
                uptime_s=round(time.monotonic() - self._started_s, 3),
                resident_bytes=resident_bytes(os.getpid()) or 0,
                connections=self.connections,
            ),
            overall=overall,
            models=models,
            priorities=priorities,
            workers={runner.name: self._workers.read(runner.name) for runner in runners},
            slo=self._slos.read(now_s),
            activity={runner.name: runner.activity() for runner in runners},
            memory=service.MemoryStats(
                capacity_bytes=ledger.capacity_bytes,
                reserved_bytes=ledger.reserved_bytes,
                free_bytes=ledger.free_bytes(),
            ),
            keyed=self.texts.keyed_stats(),
        )

    async def _subscribe(self, params: service.SubscribeParams, caller: Caller) -> service.SubscribeResult:
        unknown = sorted(set(params.topics) - set(service.TOPICS))
        if unknown:
            raise RpcError(
                ErrorKind.INVALID_PARAMS,
                f"unknown topic `{shorten(unknown[0])}` in `$.topics`; known are {', '.join(service.TOPICS)}",
                path="$.topics",
            )
        caller.subscribe(frozenset(params.topics))
        return service.SubscribeResult(topics=sorted(set(params.topics)))

    async def _shutdown(self, params: service.ShutdownParams, _: Caller) -> service.NoResult:
        if params.drain_ms is not None:
            self.drain_s = params.drain_ms / 1000
        if self.shutdown_asked.is_set() and params.drain_ms == 0:
            self.hurry.set()
        self.shutdown_asked.set()
        return service.NoResult()

    async def _discover(self, _: service.NoParams, __: Caller) -> dict[str, Any]:
        return openrpc.document(_VERSIONS["mlxsup"])


def _model_health(runner: ModelRunner) -> service.ModelHealth:
    snapshot = runner.snapshot()
    refused = runner.gate.why_refused(trio.current_time())
    down = snapshot.state in (WorkerState.FAILED, WorkerState.QUARANTINED)
    reason = snapshot.reason or (refused.message if refused is not None else None)
    return service.ModelHealth(
        state=snapshot.state.value,
        reason=reason,
        ready=not down and refused is None,
        switched_off=[] if snapshot.self_test is None else list(snapshot.self_test.switched_off),
        self_test=snapshot.self_test,
    )
