"""The terminal that `mlxsup top` takes over."""

import os
import select
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mlxsup.supervisor.cli.top_live import Screen
from mlxsup.supervisor.cli.top_screen import View
from tests.unit.cli.top_sights import sight

LEFT = b"\x1b[?1049l"
CURSOR_HIDDEN = b"\x1b[?25l"
CURSOR_SHOWN = b"\x1b[?25h"
LIMIT_S = 30


def test_a_defect_leaves_the_terminal_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    person, program = os.openpty()
    try:
        with Path(os.ttyname(program)).open() as stdin, Path(os.ttyname(program)).open("w") as stdout:
            monkeypatch.setattr(sys, "stdin", stdin)
            screen = Screen(Console(file=stdout, force_terminal=True), View(sight=sight(), rates=None))
            before = termios.tcgetattr(stdin)
            during: list[Any] = []

            def fail() -> None:
                with screen.taken():
                    during.extend(termios.tcgetattr(stdin))
                    raise ZeroDivisionError

            with pytest.raises(ZeroDivisionError):
                fail()
            assert during != before == termios.tcgetattr(stdin)
            shown = b""
            while LEFT not in shown:
                assert select.select([person], [], [], LIMIT_S)[0], shown
                shown += os.read(person, 65536)
            assert shown.rindex(CURSOR_SHOWN) > shown.rindex(CURSOR_HIDDEN)
    finally:
        os.close(person)
        os.close(program)
