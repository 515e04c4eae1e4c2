"""How things look in a terminal: tables, sizes, one line of progress."""

import shutil
import sys
import time
from collections.abc import Sequence

import click

_UNITS = ("B", "kB", "MB", "GB", "TB")
_BAR_CHARS = 24
_REDRAW_S = 0.05


def size(count: float | None) -> str:
    """`538060032` as `538 MB`."""
    if count is None:
        return "-"
    unit = 0
    while count >= 1000 and unit < len(_UNITS) - 1:
        count /= 1000
        unit += 1
    return f"{count:.0f} {_UNITS[unit]}" if count >= 10 or unit == 0 else f"{count:.1f} {_UNITS[unit]}"


def counted(count: int, what: str) -> str:
    """`1 request`, `2 requests`."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]
    return "\n".join([click.style(lines[0], bold=True), *lines[1:]])


class ProgressLine:
    """One line on stderr that is drawn over; in a log, one line for each phase."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._on_terminal = sys.stderr.isatty()
        self._phase = ""
        self._phase_began_s = 0.0
        self._drawn_s = 0.0
        self._phase_base = 0

    def show(self, phase: str, done: int, total: int | None) -> None:
        """`done` of `total` bytes of `phase`; None where it can't be counted."""
        now_s = time.monotonic()
        if phase != self._phase:
            self._phase, self._phase_began_s, self._phase_base = phase, now_s, done
            if not self._on_terminal:
                click.echo(
                    f"{self._title}: {phase}{f' ({size(total)})' if total and total > 1 else ''}", err=True
                )
        elif now_s - self._drawn_s < _REDRAW_S and done != total:
            return
        self._drawn_s = now_s
        if self._on_terminal:
            self._draw(done, total, now_s)

    def tell(self, text: str, meanwhile: str) -> None:
        """A line that stays; below it a terminal shows `meanwhile`, until there is something else to show."""
        self.end()
        click.echo(f"{self._title}: {text}", err=True)
        self._phase = meanwhile
        if self._on_terminal:
            self._draw(0, None, time.monotonic())

    def _draw(self, done: int, total: int | None, now_s: float) -> None:
        line = f"{self._title}  {self._phase}"
        if total and total > 1:
            filled = _BAR_CHARS * done // total
            elapsed_s = now_s - self._phase_began_s
            rate = f"  {size((done - self._phase_base) / elapsed_s)}/s" if elapsed_s > 0.2 else ""
            bar = "━" * filled + "╌" * (_BAR_CHARS - filled)
            line += f"  {bar}  {size(done)} of {size(total)}{rate}"
        click.echo(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}", err=True, nl=False)

    def end(self) -> None:
        """Leave the line behind, as if it had never been."""
        if self._on_terminal and self._phase:
            click.echo("\r\x1b[K", err=True, nl=False)
