"""Lines that grow where they stand, redrawn in the terminal; in a log each is written once, when it has ended."""

import shutil
import sys
import unicodedata
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import click
import trio

_REDRAW_S = 1 / 30
_MARGIN = "   "
_HIDE_CURSOR, _SHOW_CURSOR, _CLEAR_LINE = "\x1b[?25l", "\x1b[?25h", "\x1b[K"


def columns_of(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Cf", "Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def printable(text: str) -> str:
    """On one line, and with nothing in it that a terminal would obey: a model may say anything."""
    return "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in text)


def clip(text: str, columns: int) -> str:
    """The end of `text` that fits, for that is where it grows."""
    if sum(map(columns_of, text)) <= columns:
        return text
    room, start = columns - 1, len(text)
    while start and columns_of(text[start - 1]) <= room:
        start -= 1
        room -= columns_of(text[start])
    return "…" + text[start:] if columns > 0 else ""


class Board:
    """One line for each label. `add` and `end` only note; `drawn` draws."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = labels
        self._width = max(map(len, labels))
        self._texts = ["" for _ in labels]
        self._ended = [False for _ in labels]
        self._changed = trio.Event()
        # Lines that have scrolled out at the top can't be drawn over.
        self._live = sys.stdout.isatty() and shutil.get_terminal_size().lines > len(labels) + 1

    def add(self, line: int, piece: str) -> None:
        self._texts[line] += printable(piece)
        self._changed.set()

    def end(self, line: int) -> None:
        self._ended[line] = True
        self._changed.set()
        if not self._live:
            click.echo(f"{_MARGIN}{self._labels[line].ljust(self._width)}  {self._texts[line].strip()}")

    @asynccontextmanager
    async def drawn(self) -> AsyncIterator[None]:
        if not self._live:
            yield
            return
        self._write(_HIDE_CURSOR + "\n" * len(self._labels))
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._redraw)
                yield
                nursery.cancel_scope.cancel()
        finally:
            self._write(self._frame() + _SHOW_CURSOR)

    async def _redraw(self) -> None:
        while True:
            self._write(self._frame())
            self._changed = trio.Event()
            await trio.sleep(_REDRAW_S)
            await self._changed.wait()

    def _frame(self) -> str:
        # The last column stays free: a character there makes some terminals wrap.
        room = shutil.get_terminal_size().columns - 1 - len(_MARGIN) - self._width - 4
        lines = []
        for label, text, ended in zip(self._labels, self._texts, self._ended, strict=True):
            mark = click.style("✓", fg="green") if ended else click.style("·", dim=True)
            name = click.style(label.ljust(self._width), fg="cyan")
            lines.append(f"{_MARGIN}{mark} {name}  {clip(text.strip(), room)}{_CLEAR_LINE}\n")
        return f"\r\x1b[{len(lines)}A{''.join(lines)}"

    @staticmethod
    def _write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
