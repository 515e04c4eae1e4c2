"""The table of `mlxsup top`: one set of columns for tiers and models, as many as the terminal is wide. Pure."""

import math
from collections.abc import Callable, Sequence

import msgspec
from rich.cells import cell_len
from rich.text import Text

from mlxsup.protocol.service import Quantiles, Recent
from mlxsup.supervisor.cli.render import size
from mlxsup.supervisor.cli.top_rates import Rate

_NAME_CELLS_MIN = 12


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What is None is not known, and shown as `-`. A tier has no process, and nothing to say of one."""

    name: str
    of_tier: bool = False
    state: str = ""
    style: str = ""
    running: int | None = None
    waiting: int | None = None
    rate: Rate | None = None
    recent: Recent | None = None
    memory_bytes: int | None = None
    deaths: int | None = None


class Column(msgspec.Struct, frozen=True):
    """`rank` 0 is the last to be left out. Cells are never wider than `cells`. Some are `of_process`."""

    title: str
    cells: int
    rank: int
    write: Callable[[Row], str]
    left: bool = False
    of_process: bool = False


def _ttft(row: Row) -> Quantiles | None:
    return None if row.recent is None else row.recent.ttft_ms


def _token(row: Row) -> Quantiles | None:
    return None if row.recent is None else row.recent.inter_token_ms


def _rate(row: Row, of: Callable[[Rate], float]) -> str:
    return amount(None if row.rate is None else of(row.rate))


_COLUMNS = (
    Column("STATE", 11, 2, lambda row: row.state, left=True, of_process=True),
    Column("RUN", 4, 0, lambda row: amount(row.running)),
    Column("WAIT", 4, 1, lambda row: amount(row.waiting)),
    Column("OUT/S", 5, 3, lambda row: _rate(row, lambda rate: rate.completion_tokens)),
    Column("IN/S", 5, 6, lambda row: _rate(row, lambda rate: rate.prompt_tokens)),
    Column("TTFT", 5, 4, lambda row: _quantile(_ttft(row), 50)),
    Column("P99", 5, 7, lambda row: _quantile(_ttft(row), 99)),
    Column("TOKEN", 5, 8, lambda row: _quantile(_token(row), 50)),
    Column("P99", 5, 9, lambda row: _quantile(_token(row), 99)),
    Column("DONE/S", 6, 10, lambda row: _rate(row, lambda rate: rate.ended)),
    Column("REF/S", 5, 11, lambda row: _rate(row, lambda rate: rate.refused)),
    Column("MEMORY", 7, 5, lambda row: size(row.memory_bytes), of_process=True),
    Column("DIED", 4, 12, lambda row: amount(row.deaths), of_process=True),
)


class Table:
    """For so wide a terminal, and the names that come first in each row."""

    def __init__(self, names: Sequence[str], columns: int) -> None:
        longest = max((cell_len(clean(name)) for name in names), default=0)
        self._name_cells = min(longest, _NAME_CELLS_MIN)
        room = columns - self._name_cells
        chosen = []
        for column in sorted(_COLUMNS, key=lambda column: column.rank):
            if room < column.cells + 1:
                break
            room -= column.cells + 1
            chosen.append(column)
        self._chosen = [column for column in _COLUMNS if column in chosen]
        self._name_cells = min(longest, self._name_cells + max(0, room))

    def header(self, first: str, *, of_tiers: bool = False) -> Text:
        return self._line(
            first, lambda column: "" if of_tiers and column.of_process else column.title, "bold"
        )

    def row(self, row: Row) -> Text:
        def write(column: Column) -> str:
            return "" if row.of_tier and column.of_process else column.write(row)

        return self._line(row.name, write, state_style=row.style)

    def _line(
        self, first: str, write: Callable[[Column], str], style: str = "", state_style: str = ""
    ) -> Text:
        line = Text(fit(first, self._name_cells), style)
        for column in self._chosen:
            line.append(" ").append(_align(column, write(column)), state_style if column.left else None)
        line.rstrip()
        return line


def _align(column: Column, cell: str) -> str:
    return cell.ljust(column.cells) if column.left else cell.rjust(column.cells)


def clean(text: str) -> str:
    """With nothing in it that a terminal would obey."""
    return "".join(char if char.isprintable() else "�" for char in text)


def fit(text: str, cells: int) -> str:
    """Exactly so wide. The end of a name that is too long tells it from its siblings, so its middle goes."""
    text = clean(text)
    if cell_len(text) > cells:
        end = _of_end(text, (cells - 1) * 2 // 3)
        text = f"{_of_start(text, cells - 1 - cell_len(end))}…{end}" if cells > 0 else ""
    return text + " " * (cells - cell_len(text))


def _of_start(text: str, cells: int) -> str:
    taken = text
    while cell_len(taken) > max(0, cells):
        taken = taken[:-1]
    return taken


def _of_end(text: str, cells: int) -> str:
    taken = text
    while cell_len(taken) > max(0, cells):
        taken = taken[1:]
    return taken


def amount(value: float | None) -> str:
    """`0`, `1.2`, `410`, `12k`, `1.2M`: at most four characters, up to a million millions."""
    if value is None:
        return "-"
    for unit in ("", "k", "M", "G"):
        if value < 9.95 and value != int(value):
            return f"{value:.1f}{unit}"
        if value < 999.5 or unit == "G":
            return f"{value:.0f}{unit}"
        value /= 1000
    raise AssertionError("the last unit has no end")


def _quantile(quantiles: Quantiles | None, percent: int) -> str:
    if quantiles is None or not quantiles.count:
        return "-"
    return span_ms(quantiles.p50 if percent == 50 else quantiles.p99)


def span_ms(value: float) -> str:
    """`1.2ms`, `123ms`, `1.2s`, `59s`, `12m`, `12h`: at most five characters, up to a year."""
    for unit, length in (("ms", 1000.0), ("s", 60.0), ("m", 60.0), ("h", math.inf)):
        if value < 9.95:
            return f"{value:.1f}{unit}"
        if value < length - 0.5:
            return f"{value:.0f}{unit}"
        value /= length
    raise AssertionError("the last unit has no end")


def span(seconds: float) -> str:
    """`0:05`, `1:02:03`, `3 d 1:02:03`."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if not hours:
        return f"{minute}:{second:02}"
    return f"{f'{days} d ' if days else ''}{hour}:{minute:02}:{second:02}"
