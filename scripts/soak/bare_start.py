"""A worker by itself, without a supervisor and without a spare: what its start, its load and its first token take."""

import os
import statistics
from pathlib import Path

import msgspec
import trio

from mlxsup import native
from mlxsup.config.schema import Generation, Model
from mlxsup.config.schema import Worker as WorkerConfig
from mlxsup.protocol import worker_link as link
from mlxsup.protocol.generation import GenerateParams
from mlxsup.supervisor.generation.translate import make_order
from mlxsup.supervisor.pool.launch import worker_command, worker_environment
from mlxsup.supervisor.pool.process import spawn_process
from mlxsup.supervisor.pool.worker import Handlers, Worker
from scripts.soak.orders import Order

_LIMIT_S = 300.0


class BareStart(msgspec.Struct, frozen=True):
    """In seconds: from the spawn to the end of the imports, from the order to load to `ready`, and to a first token.

    `at_s` is the moment of the spawn on the monotonic clock.
    """

    at_s: float
    import_s: float
    load_s: float
    first_token_s: float

    @property
    def total_s(self) -> float:
        return self.import_s + self.load_s + self.first_token_s


def middle(starts: list[BareStart]) -> BareStart:
    """The median of each part."""
    return BareStart(
        starts[0].at_s,
        statistics.median(start.import_s for start in starts),
        statistics.median(start.load_s for start in starts),
        statistics.median(start.first_token_s for start in starts),
    )


async def start_bare(
    config: WorkerConfig, model: Model, folder: Path, home: Path, orders: list[Order]
) -> BareStart:
    """Spawn, load, and compute the first token of all `orders` together, as after a death."""
    preload = native.preload_environment(config.blas_threads)
    environment = worker_environment({**os.environ, "HOME": str(home)}, preload)
    with trio.fail_after(_LIMIT_S):
        async with trio.open_nursery() as nursery:
            spawned_s = trio.current_time()
            worker = Worker(await spawn_process(worker_command(config.command), environment), config)
            nursery.start_soon(worker.run)
            try:
                await worker.wait_hello()
                hello_s = trio.current_time()
                await worker.call(link.LOAD, _load(config, model, folder), link.Loaded)
                ready_s = trio.current_time()
                await _first_token(worker, orders)
                first_s = trio.current_time()
            finally:
                await worker.stop()
    return BareStart(spawned_s, hello_s - spawned_s, ready_s - hello_s, first_s - ready_s)


async def _first_token(worker: Worker, orders: list[Order]) -> None:
    came = trio.Event()

    def ignore(*_: object) -> None:
        pass

    worker.adopt(Handlers(step=lambda _: came.set(), answer=ignore, progress=ignore, heartbeat=ignore))
    for number, order in enumerate(orders, 1):
        params = msgspec.convert({"model": "bare", **order.params}, GenerateParams)
        worker.send_request(number, link.GENERATE, make_order(params, Generation(), 0, 0.0))
    await came.wait()


def _load(config: WorkerConfig, model: Model, folder: Path) -> link.Load:
    return link.Load(
        model_path=str(folder),
        context_tokens_max=model.context_tokens_max,
        batch_sequences_max=model.batch_sequences_max,
        prefill_chunk_tokens=model.prefill_chunk_tokens,
        float32=model.float32,
        wired_limit_bytes=config.wired_limit_bytes,
        cache_limit_bytes=config.cache_limit_bytes,
        heartbeat_interval_s=config.heartbeat_interval_s,
    )
