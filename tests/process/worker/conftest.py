"""Real supervisors with real workers, for the tests of their lives and deaths."""

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from io import FileIO
from pathlib import Path

import msgspec
import psutil
import pytest

from mlxsup.protocol.client.sync import Client

PROGRAMS = Path(__file__).with_name("programs")
WAIT_S = 60.0


class Supervisor(msgspec.Struct, frozen=True):
    process: subprocess.Popen[bytes]
    socket: Path

    def connect(self) -> Client:
        return Client.connect(self.socket, timeout_s=WAIT_S)

    def serving(self) -> psutil.Process:
        """The worker that has the model; a spare is none."""
        with self.connect() as client:
            (pid,) = [entry.pid for entry in client.call("model/list").models if entry.pid is not None]
        return psutil.Process(pid)

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


StartSupervisor = Callable[..., Supervisor]


@pytest.fixture
def start_supervisor(tmp_path: Path) -> Iterator[StartSupervisor]:
    """Call it with a worker program of `programs` and its arguments, or with none for the real one.

    `toml` goes on in the table `[worker]`.
    """
    with ExitStack() as stack:

        def start(program: str | None = None, *program_arguments: str, toml: str = "") -> Supervisor:
            own = [sys.executable, "-P", str(PROGRAMS / program), *program_arguments] if program else []
            config = tmp_path / "config.toml"
            config.write_text(f"[worker]\ncommand = {json.dumps(own)}\n{toml}")
            socket = tmp_path / "s.sock"
            arguments = [sys.executable, "-P", "-m", "mlxsup.supervisor", "start"]
            process = subprocess.Popen(
                [*arguments, "--config", str(config), "--socket", str(socket)],
                env={**os.environ, "MLXSUP_STATE": str(tmp_path / "state")},
                stderr=subprocess.PIPE,
            )
            stack.callback(_end, process)
            assert process.stderr is not None
            for line in process.stderr:
                if b"listening" in line:
                    break
            else:
                pytest.fail("the supervisor ended before it listened")
            return Supervisor(process, socket)

        yield start


def read_pids(fifo: FileIO, count: int) -> list[int]:
    """What so many scripted workers wrote into the FIFO that is their argument."""
    text = b""
    while text.count(b"\n") < count:
        readable, _, _ = select.select([fifo], [], [], WAIT_S)
        assert readable, f"after {text!r} no other worker has started"
        text += fifo.read(4096) or b""
    return [int(line) for line in text.splitlines()]


def _end(process: subprocess.Popen[bytes]) -> None:
    with process:
        process.terminate()
        try:
            process.communicate(timeout=WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
