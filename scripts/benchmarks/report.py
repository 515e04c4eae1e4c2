"""What a benchmark found: goals and tables, printed for a person or as JSON. Edge."""

import sys
import time
from collections.abc import Sequence
from typing import Any

import click
import msgspec

from scripts.benchmarks.machine import describe_load, describe_machine


class Goal(msgspec.Struct, frozen=True):
    """`value` is to be at least, or else at most, `bound`."""

    name: str
    value: float
    bound: float
    at_least: bool = True

    @property
    def met(self) -> bool:
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def __str__(self) -> str:
        relation = "at least" if self.at_least else "at most"
        value = f"{self.value:,}" if isinstance(self.value, int) else f"{self.value:,.3f}"
        return f"{'met   ' if self.met else 'MISSED'} {self.name}: {value}, goal {relation} {self.bound:,g}"


class Table(msgspec.Struct, frozen=True):
    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def __str__(self) -> str:
        lines = [self.columns, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.columns))]
        first, *others = widths
        text = [self.title]
        for label, *cells in lines:
            shown = [label.ljust(first), *(c.rjust(w) for c, w in zip(cells, others, strict=True))]
            text.append(("  " + "  ".join(shown)).rstrip())
        return "\n".join(text)


class Section(msgspec.Struct, frozen=True):
    """One part of a benchmark: `figures` is all that was measured, the tables are for a person."""

    name: str
    figures: Any
    tables: list[Table]
    goals: list[Goal]


class Report:
    """`program` is the script that a person ran, `bench` the part of it that this is about."""

    def __init__(self, bench: str, seed: int, program: str = "scripts/bench") -> None:
        self._program = program
        self._bench = bench
        self._seed = seed
        self._date = time.strftime("%Y-%m-%d %H:%M:%S %z")
        self._started_s = time.monotonic()
        self._machine = describe_machine()
        self._load_before = describe_load()
        self._sections: list[Section] = []

    def say(self, progress: str) -> None:
        print(f"[{time.monotonic() - self._started_s:6.1f} s] {progress}", file=sys.stderr, flush=True)

    def add(self, section: Section) -> None:
        self._sections.append(section)

    def close(self, *, as_json: bool, check: bool) -> None:
        """Print everything; with `check` a missed goal ends the program with status 1."""
        click.echo(self._as_json() if as_json else self._as_text())
        if check and not all(goal.met for section in self._sections for goal in section.goals):
            raise SystemExit(1)

    def _as_json(self) -> str:
        report = {
            "bench": self._bench,
            "date": self._date,
            "seed": self._seed,
            "machine": self._machine,
            "load_before": self._load_before,
            "load_after": describe_load(),
            "seconds": time.monotonic() - self._started_s,
            "sections": {
                section.name: {
                    "figures": section.figures,
                    "goals": [{**msgspec.to_builtins(goal), "met": goal.met} for goal in section.goals],
                }
                for section in self._sections
            },
        }
        return msgspec.json.format(msgspec.json.encode(report), indent=2).decode()

    def _as_text(self) -> str:
        machine = ", ".join(f"{name} {value}" for name, value in self._machine.items())
        load = f"load average {self._load_before[0]:.2f} before, {describe_load()[0]:.2f} after"
        blocks = [f"{self._program} {self._bench}, {self._date}, seed {self._seed}\n{machine}\n{load}"]
        for section in self._sections:
            blocks += map(str, section.tables)
            blocks.append("\n".join(map(str, section.goals)))
        return "\n\n".join(blocks)
