"""Real supervisors, started as a user starts them, with no model in them.

Every wait ends because what it waits for ends: the kernel ends each process after a time, and with it its pipes.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from mlxsup.protocol.client.sync import Client

LIMIT_S = 60
# An alarm survives exec, and the new program has no handler for it.
_LIMITED = "import os, signal, sys; signal.alarm(int(sys.argv[1])); os.execvp(sys.argv[2], sys.argv[2:])"


class Finished(msgspec.Struct, frozen=True):
    status: int
    stdout: bytes
    stderr: str

    @property
    def messages(self) -> list[Any]:
        """Stdout, which holds nothing but messages of the protocol."""
        messages = [msgspec.json.decode(line) for line in self.stdout.splitlines()]
        assert all(message["jsonrpc"] == "2.0" for message in messages)
        return messages


class Supervisor(msgspec.Struct, frozen=True):
    process: subprocess.Popen[bytes]
    socket: Path

    def connect(self) -> Client:
        return Client.connect(self.socket, timeout_s=LIMIT_S)

    @property
    def resident_bytes(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def wait(self) -> int:
        """Its exit status."""
        return self.process.wait(LIMIT_S)


class User:
    """Somebody with a folder of their own, who runs mlxsup from it."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._stack = stack
        self.folder = folder
        self.socket = folder / "run" / "s.sock"
        self.config = folder / "config.toml"
        self.config.write_text("")
        self.environment: Mapping[str, str] = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("MLXSUP_", "XDG_"))},
            "HOME": str(folder),
            "MLXSUP_CONFIG": str(self.config),
            "MLXSUP_SOCKET": str(self.socket),
        }

    def spawn(self, *arguments: str, **pipes: Any) -> subprocess.Popen[bytes]:
        """`mlxsup` with these arguments; it is ended with the test."""
        command = [sys.executable, "-P", "-m", "mlxsup.supervisor", *arguments]
        limited = [sys.executable, "-c", _LIMITED, str(LIMIT_S), *command]
        process = subprocess.Popen(limited, env=self.environment, cwd=self.folder, **pipes)
        self._stack.callback(_end, process)
        return process

    def run(self, *arguments: str, stdin: bytes = b"") -> Finished:
        process = self.spawn(
            *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        stdout, stderr = process.communicate(stdin, LIMIT_S)
        return Finished(process.returncode, stdout, stderr.decode())

    def start(self, *arguments: str) -> Supervisor:
        """`mlxsup start`; returns once it listens."""
        process = self.spawn("start", *arguments, stderr=subprocess.PIPE)
        assert process.stderr is not None
        log = []
        for line in process.stderr:
            if b"listening" in line:
                return Supervisor(process, self.socket)
            log.append(line.decode())
        raise AssertionError("the supervisor ended before it listened: " + "".join(log))


def _end(process: subprocess.Popen[bytes]) -> None:
    with process:
        process.kill()


@pytest.fixture
def user(tmp_path: Path) -> Iterator[User]:
    with ExitStack() as stack:
        yield User(tmp_path, stack)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    """A user whose supervisor runs, for tests that leave it as they found it."""
    with ExitStack() as stack:
        user = User(tmp_path_factory.mktemp("user"), stack)
        user.start()
        yield user


def request(id: int | str, method: str, params: Any = None) -> bytes:
    message = {"jsonrpc": "2.0", "id": id, "method": method, "params": {} if params is None else params}
    return msgspec.json.encode(message) + b"\n"
