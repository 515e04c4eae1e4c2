"""All the models: which names there are, and the runner of each."""

import os
import random
from pathlib import Path

import trio

from mlxsup import native
from mlxsup.config.schema import Config
from mlxsup.config.schema import Model as ModelConfig
from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.service import ModelEntry
from mlxsup.supervisor.events import EventBus
from mlxsup.supervisor.lease.desk import LeaseDesk
from mlxsup.supervisor.models.aliases import ALIASES
from mlxsup.supervisor.models.checked_folders import CheckedFolders
from mlxsup.supervisor.models.names import Folder, Source, check_name, parse_source
from mlxsup.supervisor.models.store import Store
from mlxsup.supervisor.pool.casualties import Witness
from mlxsup.supervisor.pool.companions import Companions, adapter_folders
from mlxsup.supervisor.pool.hatchery import Hatchery
from mlxsup.supervisor.pool.launch import share_of_cores, worker_command, worker_environment
from mlxsup.supervisor.pool.life import WorkerSource
from mlxsup.supervisor.pool.lifecycle import WorkerState
from mlxsup.supervisor.pool.process import ChildProcess, Observer, resident_bytes, spawn_process
from mlxsup.supervisor.pool.runner import ModelRunner
from mlxsup.supervisor.recovery.breaker import BreakerState, CircuitBreaker
from mlxsup.supervisor.recovery.limits import machine_limits
from mlxsup.supervisor.recovery.poison import PoisonWatch, QuarantinedRequest
from mlxsup.supervisor.residency.residency import Residency, Weights
from mlxsup.supervisor.residency.weights import expands_weights


class Pool:
    """Runners are made when a model is first named, and live in `nursery` as long as the supervisor."""

    def __init__(
        self,
        config: Config,
        config_folder: Path,
        store: Store,
        events: EventBus,
        nursery: trio.Nursery,
        *,
        witness: Witness,
        quarantined: list[QuarantinedRequest],
        prefix_folder: Path | None = None,
    ) -> None:
        """`prefix_folder` has one for each model, with what its workers keep on the disk."""
        self._config = config
        self._config_folder = config_folder
        self._store = store
        self._events = events
        self._nursery = nursery
        self._witness = witness
        self._machine = CircuitBreaker(machine_limits(config.recovery))
        self._quarantined = quarantined
        self._prefix_folder = prefix_folder
        self._observer = Observer()
        self._folders = CheckedFolders()
        self.residency = Residency(
            config.memory,
            headroom_bytes=config.recovery.headroom_bytes,
            blocked_s=config.recovery.memory_wait_s,
            spares=config.worker.spares,
            total_bytes=self._total_bytes(),
            available=self._available_bytes,
        )
        nursery.start_soon(self.residency.run)
        self._lease = LeaseDesk(config.worker.prefill_lease)
        nursery.start_soon(self._lease.run)
        self._hatchery = Hatchery(self._spawn, config.worker, nursery)
        self._runners: dict[str, ModelRunner] = {}
        for name in config.models:
            self.runner(name)

    def runner(self, name: str) -> ModelRunner:
        """The runner of a configured, built-in or pulled model.

        Raises:
            RpcError: MODEL_NOT_FOUND, INVALID_PARAMS for what is no name at all.
        """
        found = self._runners.get(name)
        if found is not None:
            return found
        model = self._config.models.get(name)
        source = self._source(name, model)
        if model is None and not isinstance(source, Folder) and source.name not in ALIASES:
            # A name that nobody configured has to be there, or anybody could fill this table.
            self._require_pulled(source)
        recovery = self._config.recovery
        runner = ModelRunner(
            name,
            model or ModelConfig(),
            self._config.worker,
            recovery,
            self._config.scheduling,
            self._worker_source(name, source, model or ModelConfig()),
            self._events,
            witness=self._witness,
            machine=self._machine,
            poison=PoisonWatch(
                recovery.suspect_tokens,
                recovery.quarantine_max,
                recovery.suspect_memory_s,
                self._quarantined,
            ),
            rng=random.Random(),
            residency=self.residency,
        )
        self._runners[name] = runner
        self._nursery.start_soon(runner.run)
        return runner

    def runners(self) -> list[ModelRunner]:
        return list(self._runners.values())

    def hold(self, duration_s: float) -> None:
        """Accept no request for so long, or until a model is loaded by hand: the machine is in trouble."""
        self._machine.open_for(duration_s, trio.current_time())

    def forgive(self, model: str | None) -> int:
        """Let the quarantined requests of one model try again, or of all; how many there were."""
        forgiven = {entry.digest for entry in self._quarantined if model in (None, entry.model)}
        self._quarantined = [entry for entry in self._quarantined if entry.digest not in forgiven]
        for runner in self._runners.values():
            forgiven |= runner.forgive() if model in (None, runner.name) else set()
        self._witness.requests_forgiven(model)
        return len(forgiven)

    async def list(self) -> list[ModelEntry]:
        """Configured, loaded or pulled models, and what is known of each."""
        pulled = {model.name for model in await trio.to_thread.run_sync(self._store.pulled)}
        entries = [self.entry(runner, pulled) for runner in self._runners.values()]
        others = sorted((pulled | set(ALIASES)) - set(self._runners))
        return entries + [_untouched(name, pulled) for name in others]

    def entry(self, runner: ModelRunner, pulled: set[str] | None = None) -> ModelEntry:
        snapshot = runner.snapshot()
        source = self._source(runner.name, self._config.models.get(runner.name))
        return ModelEntry(
            name=runner.name,
            state=snapshot.state.value,
            reason=snapshot.reason,
            pid=snapshot.pid,
            generation=snapshot.generation,
            memory_bytes=None if snapshot.pid is None else resident_bytes(snapshot.pid),
            pinned=snapshot.pinned,
            breaker=snapshot.breaker.value,
            pulled=snapshot.state is WorkerState.READY or self._is_pulled(source, pulled),
            switched_off=[] if snapshot.self_test is None else list(snapshot.self_test.switched_off),
            self_test=snapshot.self_test,
        )

    def _is_pulled(self, source: Source, pulled: set[str] | None) -> bool:
        if isinstance(source, Folder):
            return True
        return self._store.find(source) is not None if pulled is None else source.name in pulled

    def _source(self, name: str, model: ModelConfig | None) -> Source:
        if model is None:
            return parse_source(check_name(name), aliases=ALIASES)
        return parse_source(model.source or name, aliases=ALIASES)

    def _require_pulled(self, source: Source) -> Path:
        if isinstance(source, Folder):
            folder = source.locate(base=self._config_folder, home=Path.home())
            if not folder.is_dir():
                raise RpcError(
                    ErrorKind.MODEL_NOT_FOUND,
                    "the folder that the configuration names for this model is not there",
                )
            return folder
        pulled = self._store.find(source)
        if pulled is None:
            raise RpcError(
                ErrorKind.MODEL_NOT_FOUND,
                f"the model `{source.name}` is not here: fetch it with `mlxsup pull {source.name}`, or configure one",
            )
        if pulled.name != source.name:
            # One folder serves both on a file system that ignores case; one name is one model.
            raise RpcError(ErrorKind.MODEL_NOT_FOUND, f"the model is called `{pulled.name}` here")
        return pulled.path

    def _worker_source(self, name: str, source: Source, model: ModelConfig) -> WorkerSource:
        async def find(wanted: Source) -> Path:
            folder = await trio.to_thread.run_sync(self._require_pulled, wanted)
            await trio.to_thread.run_sync(self._folders.check, folder)
            return folder

        async def locate() -> Path:
            return await find(source)

        async def accompany() -> Companions:
            draft = None if model.draft is None else parse_source(model.draft, aliases=ALIASES)
            return Companions(
                draft=None if draft is None else await find(draft),
                adapters=adapter_folders(model.adapters, self._config_folder, Path.home()),
            )

        async def weigh() -> Weights | None:
            try:
                folders = [await locate()]
                draft = (await accompany()).draft
                folders += [] if draft is None else [draft]
                facts = [await trio.to_thread.run_sync(self._folders.check, folder) for folder in folders]
            except RpcError:
                # The worker that is begun all the same is refused with it.
                return None
            expands = expands_weights() if model.float32 is None else model.float32
            return Weights(
                bytes=sum(each.float32_bytes if expands else each.weights_bytes for each in facts),
                files=tuple(
                    folder / name
                    for folder, each in zip(folders, facts, strict=True)
                    for name in each.weight_files
                ),
            )

        return WorkerSource(
            locate=locate,
            hatch=self._hatchery.hatch,
            observe=self._observer.observe,
            available=self._available_bytes,
            weigh=weigh,
            lease=self._lease,
            accompany=accompany,
            prefix_bytes_max=lambda: self.residency.prefix_bytes_max(name),
            prefix_folder=None
            if self._prefix_folder is None
            else self._prefix_folder / name.replace("/", "--"),
        )

    def _available_bytes(self) -> int:
        return self._observer.available_bytes()

    def _total_bytes(self) -> int:
        return self._observer.total_bytes()

    async def keep_spares(self) -> None:
        """Have spare workers ready once the first model is; until cancelled."""
        await self._hatchery.keep_spares()

    async def _spawn(self) -> ChildProcess:
        config = self._config.worker
        threads = config.blas_threads or share_of_cores(os.cpu_count() or 1, len(self._config.models))
        environment = worker_environment(os.environ, native.preload_environment(threads))
        return await spawn_process(worker_command(config.command), environment)


def _untouched(name: str, pulled: set[str]) -> ModelEntry:
    return ModelEntry(
        name=name,
        state=WorkerState.STOPPED.value,
        reason=None,
        pid=None,
        generation=0,
        memory_bytes=None,
        pinned=False,
        breaker=BreakerState.CLOSED.value,
        pulled=name in pulled,
    )
