"""What every client needs: the installed command on PATH, the model, and a supervisor that serves them all.

A wait of a test ends because what it waits for ends: each process has a time after which the kernel ends it.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

CLIENTS = Path(__file__).parent
PROGRAMS = CLIENTS / "programs"
MODEL = "smollm2-135m"
LIMIT_S = 120
_SESSION_LIMIT_S = 900
_BECOMES_S = 10

# An alarm survives exec, and the new program has no handler for it.
_LIMITED = "import os, signal, sys; signal.alarm(int(sys.argv[1])); os.execvp(sys.argv[2], sys.argv[2:])"

# Threads of OpenBLAS wait by spinning: on a machine that does something else, too, they take turns at that.
_CONFIG = "[worker]\nblas_threads = 1\n"


def limited(*command: str, limit_s: int = LIMIT_S) -> list[str]:
    return [sys.executable, "-c", _LIMITED, str(limit_s), *command]


def question(model: str, text: str = "What is the capital of France?", **params: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0, **params}


def the_only_child(argument: str) -> psutil.Process:
    """The one child of this process that was started with `argument`.

    At the moment of its second exec it has no arguments: that is waited out.
    """
    deadline_s = time.monotonic() + _BECOMES_S
    while True:
        found = [child for child in psutil.Process().children() if argument in child.cmdline()]
        if len(found) == 1 or time.monotonic() > deadline_s:
            (child,) = found
            return child


class Finished(msgspec.Struct, frozen=True):
    status: int
    stdout: str
    stderr: str


Run = Callable[[Sequence[str]], Finished]


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """That of a user who has installed mlxsup, and runs no supervisor."""
    folder = tmp_path_factory.mktemp("user")
    config = folder / "config.toml"
    config.write_text(_CONFIG)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {
        **os.environ,
        "PATH": path,
        "MLXSUP_CONFIG": str(config),
        "MLXSUP_SOCKET": str(folder / "nobody.sock"),
        "MLXSUP_STATE": str(folder / "state"),
    }


@pytest.fixture
def as_user(environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """This process has that environment: clients give theirs to what they spawn."""
    for variable in ("PATH", "MLXSUP_CONFIG", "MLXSUP_SOCKET", "MLXSUP_STATE"):
        monkeypatch.setenv(variable, environment[variable])


@pytest.fixture(scope="session")
def run(environment: Mapping[str, str]) -> Run:
    """Runs a command to its end."""

    def run(command: Sequence[str]) -> Finished:
        finished = subprocess.run(
            limited(*command), env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        return Finished(finished.returncode, finished.stdout.decode(), finished.stderr.decode())

    return run


@pytest.fixture(scope="session")
def model(run: Run) -> str:
    """The default model's name, once it is in the user's cache."""
    pulled = run(["mlxsup", "pull", MODEL])
    assert pulled.status == 0, pulled.stderr
    return MODEL


@pytest.fixture(scope="session")
def mlxsup(environment: Mapping[str, str]) -> str:
    found = shutil.which("mlxsup", path=environment["PATH"])
    assert found is not None, "mlxsup is not installed beside this Python: run scripts/setup"
    return found


@pytest.fixture(scope="session")
def node() -> str:
    found = shutil.which("node")
    if found is None:
        pytest.skip("no node on this machine")
    return found


@pytest.fixture(scope="session")
def server(
    environment: Mapping[str, str], mlxsup: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """The socket of `mlxsup start`, one for all tests."""
    socket = tmp_path_factory.mktemp("server") / "s.sock"
    command = limited(mlxsup, "start", "--socket", str(socket), limit_s=_SESSION_LIMIT_S)
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if b"listening" in line:
                break
        else:
            pytest.fail("the supervisor ended before it listened")
        try:
            yield socket
        finally:
            process.terminate()
            process.stderr.read()
