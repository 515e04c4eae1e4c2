"""Real supervisors with real workers, for the tests of their lives and deaths."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
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

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


StartSupervisor = Callable[..., Supervisor]


@pytest.fixture
def start_supervisor(tmp_path: Path) -> Iterator[StartSupervisor]:
    """Call it with a worker program of `programs`, or with none for the real one, and with more TOML."""
    with ExitStack() as stack:

        def start(program: str | None = None, toml: str = "") -> Supervisor:
            command = f'["{sys.executable}", "-P", "{PROGRAMS / program}"]' if program else "[]"
            config = tmp_path / "config.toml"
            config.write_text(f"[worker]\ncommand = {command}\n{toml}")
            socket = tmp_path / "s.sock"
            arguments = [sys.executable, "-P", "-m", "mlxsup.supervisor", "start"]
            process = subprocess.Popen(
                [*arguments, "--config", str(config), "--socket", str(socket)], stderr=subprocess.PIPE
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


def _end(process: subprocess.Popen[bytes]) -> None:
    with process:
        process.terminate()
        try:
            process.communicate(timeout=WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
