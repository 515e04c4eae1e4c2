"""A person at a terminal, with a shell that runs one command there and tells how it has left the terminal."""

import fcntl
import os
import re
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from tests.process.recovery.setting import LIMIT_S

_PROCESS_S = 120
# The terminal is the session's own, as in a window, so that keys make signals. An alarm survives exec.
_SESSION = (
    "import fcntl, os, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "signal.alarm(int(sys.argv[1])); os.execvp(sys.argv[2], sys.argv[2:])"
)
# It survives the Ctrl-C that is meant for its command, and gets the terminal back while that one pauses.
_SHELL = """
trap : INT
set -m
echo "modes $(stty -g)"
"$@"
status=$?
while [ -n "$(jobs -s)" ]; do
    echo "paused, modes $(stty -g)"
    read -r _
    fg >/dev/null
    status=$?
done
echo "ended with $status, modes $(stty -g)"
"""


class Terminal:
    """`close` it."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        self._person, program = os.openpty()
        self.resize(rows=24, columns=80)
        session = [sys.executable, "-c", _SESSION, str(_PROCESS_S), "bash", "-c", _SHELL, "bash", *command]
        # Sizes that another terminal had (xdist exports its own) go before what this one has.
        inherited = {name: value for name, value in environment.items() if name not in {"COLUMNS", "LINES"}}
        self._process = subprocess.Popen(
            session,
            env={**inherited, "TERM": "xterm-256color"},
            cwd=folder,
            stdin=program,
            stdout=program,
            stderr=program,
            start_new_session=True,
        )
        os.close(program)
        self._unread = b""
        self.modes = self.read_past(r"modes (\S+)\r\n")[1]

    def resize(self, *, rows: int, columns: int) -> None:
        fcntl.ioctl(self._person, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press(self, keys: bytes) -> None:
        os.write(self._person, keys)

    @property
    def command(self) -> psutil.Process:
        """What the shell runs."""
        (command,) = psutil.Process(self._process.pid).children()
        return command

    def read_past(self, pattern: str) -> re.Match[str]:
        """The next place where it is found in what is shown; waits for it. What was shown before is gone then."""
        while (found := re.search(pattern, text := self._unread.decode(errors="replace"))) is None:
            readable, _, _ = select.select([self._person], [], [], LIMIT_S)
            assert readable, text
            self._unread += os.read(self._person, 65536)
        self._unread = text[found.end() :].encode()
        return found

    def close(self) -> None:
        """As a window is closed, whatever runs in it."""
        if self._process.returncode is None:
            os.close(self._person)
            self._process.kill()
            self._process.wait()
