"""What a supervisor costs that has nothing useful to do: before any model is loaded, with one that waits, and with one whose
workers die again and again.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from mlxsup.config.schema import Recovery
from mlxsup.protocol.client.sync import Client
from mlxsup.protocol.errors import RpcError
from scripts.benchmarks.null_model import make_null_model
from scripts.benchmarks.report import Goal, Section, Table
from scripts.benchmarks.supervisor_child import (
    Say,
    SupervisorChild,
    processor_s,
    running_supervisor,
    supervisor_child,
    wait_quiet,
)
from scripts.faulty_worker.ledger import Ledger
from scripts.faulty_worker.script import Fault, FaultKind

GOAL_RESIDENT_MB = 60.0
GOAL_PROCESSOR_PERCENT = 0.1
GOAL_CRASHING_PERCENT = 1.0

_FAULTY_WORKER = Path(__file__).resolve().parents[1] / "faulty_worker"
_CRASHING = "crashing"


class IdleCost(msgspec.Struct, frozen=True):
    """Of the supervisor alone; the worker's share is there to be seen, and has no goal."""

    state: str
    seconds: float
    resident_mb: float
    processor_percent: float
    worker_resident_mb: float | None
    worker_processor_percent: float | None


class CrashLoopCost(msgspec.Struct, frozen=True):
    """Of the supervisor alone, from a load to the quarantine that ends it."""

    deaths: int
    seconds: float
    processor_s: float
    processor_percent: float


def measure_idle(seconds: float, say: Say) -> Section:
    with supervisor_child() as child:
        costs = [_watch(child, "no model yet", seconds, say)]
        child.load_model(say)
        costs.append(_watch(child, "a loaded model", seconds, say))
    goals = []
    for cost in costs:
        goals += [
            Goal(f"resident MB, {cost.state}", cost.resident_mb, GOAL_RESIDENT_MB, at_least=False),
            Goal(
                f"processor time in percent, {cost.state}",
                cost.processor_percent,
                GOAL_PROCESSOR_PERCENT,
                at_least=False,
            ),
        ]
    return Section("idle", costs, [_table(costs)], goals)


def measure_crash_loops(loops: int, say: Say) -> Section:
    """Each has as many deaths as the usual restarts allow, and the usual times between them."""
    with tempfile.TemporaryDirectory(prefix="mlxsup-bench-") as name:
        folder = Path(name)
        ledger = Ledger(folder / "ledger")
        abort = Fault(kind=FaultKind.ABORT).encode()
        faulty = [sys.executable, "-P", str(_FAULTY_WORKER), "--ledger", str(folder / "ledger")]
        source = str(make_null_model(folder / "model", 4096, 0.0))
        tables: dict[str, dict[str, Any]] = {
            "worker": {"command": [*faulty, "--load", abort]},
            f"models.{_CRASHING}": {"source": source},
        }
        with running_supervisor(folder, tables) as child:
            costs = []
            for loop in range(loops):
                before = len(ledger.read())
                say(f"crash loop {loop + 1} of {loops}")
                costs.append(_crash(child, ledger, before))
    percent = 100 * sum(cost.processor_s for cost in costs) / sum(cost.seconds for cost in costs)
    goal = Goal("processor time in percent, in crash loops", percent, GOAL_CRASHING_PERCENT, at_least=False)
    return Section("crash_loops", costs, [_crash_table(costs)], [goal])


def _crash(child: SupervisorChild, ledger: Ledger, before: int) -> CrashLoopCost:
    wait_quiet([child.process, *child.workers()])
    with Client.connect(child.socket) as client:
        started_s, used_s = time.monotonic(), processor_s(child.process)
        try:
            client.call("model/load", {"model": _CRASHING})
        except RpcError:
            seconds, used_s = time.monotonic() - started_s, processor_s(child.process) - used_s
        else:
            raise RuntimeError("a model was loaded whose workers all die of it")
    deaths = len(ledger.read()) - before
    if deaths != Recovery().restarts_max + 1:
        raise RuntimeError(f"{deaths} deaths are not those of a crash loop at the usual pace")
    return CrashLoopCost(deaths, seconds, used_s, 100 * used_s / seconds)


def _watch(child: SupervisorChild, state: str, seconds: float, say: Say) -> IdleCost:
    workers = child.workers()
    wait_quiet([child.process, *workers])
    say(f"watching a supervisor with {state} for {seconds:g} s")
    started_s = time.monotonic()
    before, workers_before = processor_s(child.process), sum(map(processor_s, workers))
    time.sleep(seconds)
    after, workers_after = processor_s(child.process), sum(map(processor_s, workers))
    watched_s = time.monotonic() - started_s
    return IdleCost(
        state=state,
        seconds=watched_s,
        resident_mb=child.process.memory_info().rss / 1e6,
        processor_percent=100 * (after - before) / watched_s,
        worker_resident_mb=sum(worker.memory_info().rss for worker in workers) / 1e6 if workers else None,
        worker_processor_percent=100 * (workers_after - workers_before) / watched_s if workers else None,
    )


def _table(costs: list[IdleCost]) -> Table:
    return Table(
        "An idle supervisor",
        ("with", "seconds", "resident MB", "processor %", "worker's MB", "worker's %"),
        [
            (
                cost.state,
                f"{cost.seconds:.1f}",
                f"{cost.resident_mb:.1f}",
                f"{cost.processor_percent:.3f}",
                _or_dash(cost.worker_resident_mb, 1),
                _or_dash(cost.worker_processor_percent, 3),
            )
            for cost in costs
        ],
    )


def _crash_table(costs: list[CrashLoopCost]) -> Table:
    return Table(
        "A supervisor whose model's workers die while they load, until it is given up",
        ("crash loop", "deaths", "seconds", "processor s", "processor %"),
        [
            (
                str(number),
                str(cost.deaths),
                f"{cost.seconds:.1f}",
                f"{cost.processor_s:.3f}",
                f"{cost.processor_percent:.3f}",
            )
            for number, cost in enumerate(costs, 1)
        ],
    )


def _or_dash(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
