"""How a schedule, its history and a campaign are shown to a person. Pure."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec

from mlxsup.config.schema import Config, Model
from tests.simulation.history import History, describe
from tests.simulation.schedule import Schedule

_FAULTS_MAX = 5
_SEEDS_MAX = 30


def show_schedule(schedule: Schedule) -> Iterator[str]:
    yield f"seed {schedule.seed}: {schedule.clients} clients, calm from {schedule.calm_s:.3f} s"
    for name in ("server", "worker", "recovery", "memory"):
        section = getattr(schedule.config, name)
        yield f"  [{name}] {_differences(section, getattr(Config(), name))}"
    for name, model in schedule.config.models.items():
        yield f"  [models.{name}] {_differences(model, Model())}"
    for name in (
        "resident_bytes",
        "slow_clients",
        "shortages",
        "locate_fails",
        "disk_s",
        "disk_fails",
        "panics",
        "blameless",
    ):
        if value := getattr(schedule, name):
            yield f"  {name}: {value}"
    for title, items in (
        ("worker", schedule.fates),
        ("poison", schedule.poisons),
        ("act", schedule.acts),
        ("reaction", schedule.reactions),
    ):
        for item in items:
            yield f"  {title}: {item}"


def _differences(section: Any, default: Any) -> str:
    return ", ".join(
        f"{name} = {value}"
        for name in section.__struct_fields__
        if (value := getattr(section, name)) != getattr(default, name)
    )


def show_history(history: History) -> Iterator[str]:
    return map(describe, history)


class Tally(msgspec.Struct):
    """Of a number of schedules. `broken` has what is wrong with each that failed, by seed."""

    schedules: int = 0
    cpu_s: float = 0.0
    seen: Counter[str] = msgspec.field(default_factory=Counter)
    broken: dict[int, list[str]] = msgspec.field(default_factory=dict)
    interrupted: bool = False

    def add(self, other: "Tally") -> None:
        self.schedules += other.schedules
        self.cpu_s += other.cpu_s
        self.seen += other.seen
        self.broken |= other.broken


def show_tally(tally: Tally, first: int) -> Iterator[str]:
    simulated_h = tally.seen["simulated seconds"] / 3600
    each_ms = 1000 * tally.cpu_s / max(1, tally.schedules)
    yield (
        f"{tally.schedules} schedules from seed {first}, {each_ms:.1f} ms of CPU each: "
        f"{simulated_h:.1f} simulated hours, {len(tally.broken)} failed"
    )
    groups: dict[str, list[str]] = {}
    for name, count in sorted(tally.seen.items()):
        group, _, what = name.partition(": ")
        if what:
            groups.setdefault(group, []).append(f"{what} {count}")
    for group, counts in groups.items():
        yield from _wrapped(f"  {group:<10}", counts)
    yield from show_broken(tally)


def _wrapped(title: str, counts: list[str], width: int = 118) -> Iterator[str]:
    line = title
    for count in counts:
        if len(line) + len(count) + 2 > width:
            yield line
            line = " " * len(title)
        line += f"  {count}"
    yield line


def show_broken(tally: Tally) -> Iterator[str]:
    for seed, faults in sorted(tally.broken.items())[:_SEEDS_MAX]:
        yield f"seed {seed}: scripts/simulate --seed {seed}"
        for fault in faults[:_FAULTS_MAX]:
            yield f"    {fault.splitlines()[0]}"
    if len(tally.broken) > _SEEDS_MAX:
        yield f"and {len(tally.broken) - _SEEDS_MAX} more"
