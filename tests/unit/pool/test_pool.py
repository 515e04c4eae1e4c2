"""What a pool hands to each worker that it spawns; the workers are in memory."""

import os
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from mlxsup import native
from mlxsup.config.schema import Config, Model, Worker
from mlxsup.supervisor.events import EventBus
from mlxsup.supervisor.models.checked_folders import CheckedFolders
from mlxsup.supervisor.models.folder_check import FolderFacts
from mlxsup.supervisor.models.store import Store
from mlxsup.supervisor.pool import pool as pool_module
from mlxsup.supervisor.pool.pool import Pool
from tests.fakes.memory_worker import MemoryWorker, WorkerShop
from tests.unit.pool.conftest import Notes, until

CORES = 8
FACTS = FolderFacts(
    model_type="fake",
    architectures=(),
    weights_bytes=1,
    weight_files=(),
    float32_bytes=1,
    context_tokens=None,
    quantization=None,
    digest="",
)


async def test_a_spare_that_takes_over_has_as_many_threads_as_the_worker_that_died(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    threads: list[str] = []
    (tmp_path / "m").mkdir()
    monkeypatch.setattr(os, "cpu_count", lambda: CORES)
    monkeypatch.setattr(native, "preload_environment", lambda count: {"THREADS": str(count)})
    monkeypatch.setattr(CheckedFolders, "check", lambda *_: FACTS)
    async with trio.open_nursery() as workers, trio.open_nursery() as nursery:
        shop = WorkerShop(workers)

        async def spawn(_: list[str], environment: dict[str, str]) -> MemoryWorker:
            threads.append(environment["THREADS"])
            return await shop.spawn()

        monkeypatch.setattr(pool_module, "spawn_process", spawn)
        config = Config(
            worker=Worker(spares=1), models={"m": Model(source=str(tmp_path / "m")), "n": Model()}
        )
        pool = Pool(config, tmp_path, Store(tmp_path), EventBus(), nursery, witness=Notes(), quarantined=[])
        await pool.runner("m").ensure_ready()
        nursery.start_soon(pool.keep_spares)
        await until(lambda: len(threads) == 2)
        shop.workers[0].die(-11)
        await until(lambda: len(threads) == 3)
        serving = (await pool.runner("m").ensure_ready()).worker
        nursery.cancel_scope.cancel()

    assert serving is not None
    assert serving.pid == shop.workers[1].pid
    assert threads == ["3", "3", "3"]
