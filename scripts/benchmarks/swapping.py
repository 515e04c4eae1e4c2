"""Three models in memory for two, asked in turn: how often they are loaded, and what is disturbed by it.

How large such a budget is, a supervisor of its own is asked first. The same requests in the same order are then given to
a simple rule on paper: one after the other, and for a model that is not there the one that was used longest ago goes.
"""

import itertools
import random
import tempfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import psutil
import trio

from mlxsup.config.schema import MIB, Model
from mlxsup.protocol.client.aio import Client, connect
from mlxsup.protocol.client.exchange import Notification
from mlxsup.protocol.service import Event, Stats
from mlxsup.supervisor.pool.lifecycle import WorkerState
from scripts.benchmarks.figures import quantile
from scripts.benchmarks.null_model import make_null_model
from scripts.benchmarks.report import Goal, Section, Table
from scripts.benchmarks.supervisor_child import MODEL, Say, SupervisorChild, running_supervisor
from scripts.benchmarks.traffic import Asked, Order, Traffic, answered
from scripts.benchmarks.workload import WORKLOADS, Workload, texts, with_params

GOAL_LOADS_SHARE = 1 / 3
_NAMES = ("first", "second", "third")
_FIT = 2
# Without these a worker grows with what it has answered, by an amount that is its allocator's.
_KV_BYTES_MAX = 128 * MIB
_CACHE_BYTES_MAX = 64 * MIB
_LOOK_S = 0.25
# The supervisor measures its workers once a heartbeat.
_SETTLE_S = 3.0
_LIMIT_S = 600.0
_JITTER = 0.5
# As many as are computed together.
_TOGETHER = Model().batch_sequences_max


class SwapSizes(msgspec.Struct, frozen=True):
    """Requests come every `gap_s`, more or less; `weights_mb` and `load_s` are those of models that compute nothing."""

    requests: int
    gap_s: float
    prompt_tokens: int
    answer_tokens: int
    residency_min_s: float
    swap_wait_s: float
    weights_mb: int
    load_s: float


class SwapFigures(msgspec.Struct, frozen=True):
    """`interrupted` requests went on in another worker than the one that began them. Memory is what all workers held."""

    sizes: SwapSizes
    budget_bytes: int
    peak_bytes: int
    loads: int
    lru_loads: int
    interrupted: int
    lost: list[str]
    deaths: int
    ttft_p50_ms: float
    ttft_p95_ms: float


def measure_swapping(part: str, sizes: SwapSizes, seed: int, say: Say) -> Section:
    workload = WORKLOADS[part]()
    with tempfile.TemporaryDirectory(prefix="mlxsup-bench-") as name:
        folder = Path(name)
        source = MODEL
        if part == "null":
            source = str(make_null_model(folder / "model", sizes.weights_mb * 1_000_000, sizes.load_s))
        model = {"source": source, "kv_bytes_max": _KV_BYTES_MAX}
        worker = {**workload.worker, "spares": 0, "cache_limit_bytes": _CACHE_BYTES_MAX}
        tables = {"worker": worker, **{f"models.{name}": model for name in _NAMES}}
        orders = draw_orders(workload, sizes, seed)
        with _supervisor(folder / "alone", tables, {}) as child:
            before, after = trio.run(_measure_one, child, orders[0], say)
        budget_bytes = budget_for_two(before, after)
        memory = {
            "budget_bytes": budget_bytes,
            "residency_min_s": sizes.residency_min_s,
            "swap_wait_s": sizes.swap_wait_s,
        }
        say(f"one needs {after / 1e6:.0f} MB; {sizes.requests} requests of three")
        with _supervisor(folder / "together", tables, memory) as child:
            figures = trio.run(_measure, child, orders, sizes, budget_bytes, seed)
    return Section(f"swapping_{part}", figures, [_table(part, figures)], _goals(part, figures))


@contextmanager
def _supervisor(
    folder: Path, tables: Mapping[str, Mapping[str, Any]], memory: Mapping[str, Any]
) -> Iterator[SupervisorChild]:
    folder.mkdir()
    with running_supervisor(folder, {"memory": memory, **tables}) as child:
        yield child


def draw_orders(workload: Workload, sizes: SwapSizes, seed: int) -> list[Order]:
    """For each model in turn."""
    drawn = texts(workload, seed, sizes.prompt_tokens, sizes.answer_tokens)
    names = itertools.cycle(_NAMES)
    return [
        with_params(order, model=name)
        for order, name in itertools.islice(zip(drawn, names, strict=False), sizes.requests)
    ]


def budget_for_two(before_bytes: int, after_bytes: int) -> int:
    """By what is kept for a model before it was ever loaded, and after it has answered: two of either kind fit, and three of
    neither.

    Raises:
        RuntimeError: they are too far from each other for that.
    """
    two, three = 2 * max(before_bytes, after_bytes), 3 * min(before_bytes, after_bytes)
    if two >= three:
        raise RuntimeError(
            f"no budget is for two: a model was thought to need {before_bytes} bytes, not {after_bytes}"
        )
    return (two + three) // 2


async def _measure_one(child: SupervisorChild, order: Order, say: Say) -> tuple[int, int]:
    """What is kept for a model, in bytes, before it was loaded and after it has answered a full batch."""
    kept: list[int] = []
    async with connect(child.socket) as client:
        await client.call("model/pull", {"model": MODEL})
        say("loading one, to see what it needs")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_note_reserved, client, kept)
            traffic = Traffic(client, _LIMIT_S)
            async with trio.open_nursery() as asking:
                for _ in range(_TOGETHER):
                    asking.start_soon(traffic.ask, order)
            await trio.sleep(_SETTLE_S)
            nursery.cancel_scope.cancel()
    if len(answered(traffic.asked)) < _TOGETHER:
        raise RuntimeError(f"a model alone does not answer: {_complaints(traffic.asked)[0]}")
    return next(filter(None, kept)), kept[-1]


async def _note_reserved(client: Client, kept: list[int]) -> None:
    while True:
        stats: Stats = await client.call("server/stats")
        kept.append(sum(activity.reserved_bytes for activity in stats.activity.values()))
        await trio.sleep(_LOOK_S)


class _Watch:
    """What is seen of the workers meanwhile."""

    def __init__(self, supervisor: psutil.Process) -> None:
        self._supervisor = supervisor
        self.loads = 0
        self.peak_bytes = 0

    def take(self, notification: Notification) -> None:
        if isinstance(notification, Event) and notification.what == WorkerState.LOADING:
            self.loads += 1

    async def run(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, sum(map(_resident, self._supervisor.children())))
            await trio.sleep(_LOOK_S)


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


async def _measure(
    child: SupervisorChild, orders: list[Order], sizes: SwapSizes, budget_bytes: int, seed: int
) -> SwapFigures:
    watch = _Watch(child.process)
    async with connect(child.socket) as client, trio.open_nursery() as nursery:
        client.listen(watch.take)
        await client.call("server/subscribe", {"topics": ["worker"]})
        nursery.start_soon(watch.run)
        traffic = Traffic(client, _LIMIT_S)
        async with trio.open_nursery() as asking:
            for gap_s, order in zip(_gaps(sizes.gap_s, seed), orders, strict=False):
                asking.start_soon(traffic.ask, order)
                await trio.sleep(gap_s)
        stats: Stats = await client.call("server/stats")
        nursery.cancel_scope.cancel()
    return evaluate(sizes, budget_bytes, traffic.asked, watch.loads, watch.peak_bytes, stats)


def _gaps(gap_s: float, seed: int) -> Iterator[float]:
    chance = random.Random(f"gaps {seed}")
    while True:
        yield gap_s * chance.uniform(1 - _JITTER, 1 + _JITTER)


def evaluate(
    sizes: SwapSizes, budget_bytes: int, asked: list[Asked], loads: int, peak_bytes: int, stats: Stats
) -> SwapFigures:
    """Raises RuntimeError when nothing was answered."""
    if not answered(asked):
        raise RuntimeError(f"nothing was answered: {_complaints(asked)[0]}")
    ttfts_ms = [one.ttft_ms for one in answered(asked)]
    workers = (one.result.worker for one in answered(asked) if one.result is not None)
    return SwapFigures(
        sizes=sizes,
        budget_bytes=budget_bytes,
        peak_bytes=peak_bytes,
        loads=loads,
        lru_loads=plain_lru_loads((one.order.params["model"] for one in asked), _FIT),
        interrupted=sum(worker is not None and worker.resumed > 0 for worker in workers),
        lost=_complaints(asked),
        deaths=sum(sum(counters.deaths.values()) for counters in stats.workers.values()),
        ttft_p50_ms=quantile(ttfts_ms, 0.5),
        ttft_p95_ms=quantile(ttfts_ms, 0.95),
    )


def _complaints(asked: Iterable[Asked]) -> list[str]:
    """Of those that were refused, too: there is room for all of them to wait."""
    return [str(one.error or one.fault) for one in asked if one.result is None or one.fault is not None]


def plain_lru_loads(arrivals: Iterable[str], fit: int) -> int:
    """So many loads when requests are served in the order of their arrival, with `fit` models in memory."""
    resident: OrderedDict[str, None] = OrderedDict()
    loads = 0
    for model in arrivals:
        if model not in resident:
            loads += 1
            if len(resident) == fit:
                resident.popitem(last=False)
        resident[model] = None
        resident.move_to_end(model)
    return loads


def _goals(part: str, figures: SwapFigures) -> list[Goal]:
    share = figures.loads / figures.lru_loads
    memory_share = figures.peak_bytes / figures.budget_bytes
    return [
        Goal(f"{part}: loads, as a share of plain LRU's", share, GOAL_LOADS_SHARE, at_least=False),
        Goal(f"{part}: requests that a swap interrupted", figures.interrupted, 0, at_least=False),
        Goal(f"{part}: requests lost or refused", len(figures.lost), 0, at_least=False),
        Goal(f"{part}: workers that died", figures.deaths, 0, at_least=False),
        Goal(f"{part}: memory of all workers, as a share of the budget", memory_share, 1.0, at_least=False),
    ]


def _table(part: str, figures: SwapFigures) -> Table:
    sizes = figures.sizes
    return Table(
        f"Three models in {figures.budget_bytes / 1e6:.0f} MB for two ({part}), {sizes.requests} requests in turn, one "
        f"every {sizes.gap_s:g} s, residency at least {sizes.residency_min_s:g} s",
        ("", "loads", "plain LRU's", "interrupted", "deaths", "MB at most", "TTFT p50 s", "TTFT p95 s"),
        [
            (
                "together",
                str(figures.loads),
                str(figures.lru_loads),
                str(figures.interrupted),
                str(figures.deaths),
                f"{figures.peak_bytes / 1e6:.0f}",
                f"{figures.ttft_p50_ms / 1000:.2f}",
                f"{figures.ttft_p95_ms / 1000:.2f}",
            )
        ],
    )
