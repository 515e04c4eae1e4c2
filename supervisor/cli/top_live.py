"""A whole terminal that shows a supervisor until somebody has seen enough, and is left as it was found."""

import os
import signal
import sys
import termios
import threading
import tty
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import trio
from rich.console import Console, Group
from rich.live import Live

from mlxsup.supervisor.cli.top_keys import Key, read_keys
from mlxsup.supervisor.cli.top_rates import Rates, Sight
from mlxsup.supervisor.cli.top_screen import View, draw
from mlxsup.supervisor.cli.top_watch import follow, look

_KEYS_BYTES = 1024
_PAGE_MODELS = 5
_STEPS = {Key.UP: -1, Key.DOWN: 1, Key.PAGE_UP: -_PAGE_MODELS, Key.PAGE_DOWN: _PAGE_MODELS}
_BY_SIGNAL = 128
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH, signal.SIGTSTP)


class Screen:
    """`taken`, every key comes at once; at the end of that block all is there again that was on the terminal."""

    def __init__(self, console: Console, view: View) -> None:
        self._console = console
        self._live: Live | None = None
        self.view = view

    @contextmanager
    def taken(self) -> Iterator[None]:
        descriptor = sys.stdin.fileno()
        modes = termios.tcgetattr(descriptor)
        try:
            # Nothing waits for what the terminal has not taken yet: it may take no more.
            tty.setcbreak(descriptor, termios.TCSANOW)
            with Live(console=self._console, screen=True, auto_refresh=False) as self._live:
                self.draw()
                yield
        finally:
            self._live = None
            # What was typed and not read is not the shell's.
            termios.tcflush(descriptor, termios.TCIFLUSH)
            termios.tcsetattr(descriptor, termios.TCSANOW, modes)

    def draw(self) -> None:
        if self._live is not None:
            width, height = self._console.size
            self._live.update(Group(*draw(self.view, width, height)), refresh=True)

    def change(self, **changes: Any) -> None:
        self.view = msgspec.structs.replace(self.view, **changes)
        self.draw()

    def show(self, sight: Sight, rates: Rates | None) -> None:
        self.change(sight=sight, rates=rates, lost=None)

    def lose(self, why: str) -> None:
        self.change(rates=None, lost=why)

    def scroll(self, models: int) -> None:
        last = max(0, len(self.view.sight.models) - 1)
        self.change(skipped=min(last, max(0, self.view.skipped + models)))


async def watch(socket: Path, interval_s: float, console: Console) -> int:
    """The exit status, once somebody has ended it.

    Raises:
        ConnectionLostError, RpcError: there is nothing to be seen.
    """
    screen = Screen(console, View(sight=await look(socket), rates=None))
    with trio.open_signal_receiver(*_SIGNALS) as arrivals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow, socket, interval_s, screen)
            while True:
                with screen.taken():
                    number = await _wait_for_end(screen, arrivals)
                if number != signal.SIGTSTP:
                    break
                _pause()
            nursery.cancel_scope.cancel()
    return 0 if number in {None, signal.SIGINT} else _BY_SIGNAL + number


async def _wait_for_end(screen: Screen, arrivals: AsyncIterator[int]) -> int | None:
    """The signal that ends it or has it pause, or None: a key did, or there is nobody left to press one."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_take_keys, screen, nursery.cancel_scope)
        async for number in arrivals:
            if number == signal.SIGWINCH:
                screen.draw()
                continue
            nursery.cancel_scope.cancel()
            return number
    return None


async def _take_keys(screen: Screen, over: trio.CancelScope) -> None:
    descriptor = sys.stdin.fileno()
    while True:
        await trio.lowlevel.wait_readable(descriptor)
        try:
            data = os.read(descriptor, _KEYS_BYTES)
        except OSError:
            data = b""
        keys = list(read_keys(data))
        if not data or Key.QUIT in keys:
            over.cancel()
            return
        for key in keys:
            if key is Key.SORT:
                screen.change(order=screen.view.order.next(), skipped=0)
            else:
                screen.scroll(_STEPS[key])


def _pause() -> None:
    """As the shell's user asked with Ctrl-Z; goes on with `fg`."""
    handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
    # To this thread: then it is stopped before the call returns. And by this signal: where no shell could have it go on,
    # the kernel does not stop it.
    signal.pthread_kill(threading.get_ident(), signal.SIGTSTP)
    signal.signal(signal.SIGTSTP, handler)
