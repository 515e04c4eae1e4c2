"""What a supervisor costs that has nothing to do, before any model is loaded and with one that waits."""

import time

import msgspec

from scripts.benchmarks.report import Goal, Section, Table
from scripts.benchmarks.supervisor_child import (
    Say,
    SupervisorChild,
    processor_s,
    supervisor_child,
    wait_quiet,
)

GOAL_RESIDENT_MB = 60.0
GOAL_PROCESSOR_PERCENT = 0.1


class IdleCost(msgspec.Struct, frozen=True):
    """Of the supervisor alone; the worker's share is there to be seen, and has no goal."""

    state: str
    seconds: float
    resident_mb: float
    processor_percent: float
    worker_resident_mb: float | None
    worker_processor_percent: float | None


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


def _or_dash(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
