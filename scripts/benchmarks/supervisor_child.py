"""A real supervisor in a process of its own, on a socket in a folder that goes away with it."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import psutil

from mlxsup import native
from mlxsup.config.schema import DEFAULT_MODEL
from mlxsup.protocol.client.sync import Client, ConnectionLostError
from mlxsup.protocol.service import PullResult

Say = Callable[[str], None]

MODEL = DEFAULT_MODEL
LOG = "log"
# Of a model's table.
KEEPS_NO_BEGINNINGS: dict[str, Any] = {"prefix_bytes_max": 0, "prefix_disk_bytes_max": 0}

_START_S = 60.0
_STOP_S = 60.0
_POLL_S = 0.05
# Longer than a BLAS thread spins after its last product, and several ticks of the clock of processor time.
_QUIET_S = 0.2


class SupervisorChild(msgspec.Struct, frozen=True):
    process: psutil.Process
    socket: Path

    def workers(self) -> list[psutil.Process]:
        """Spares too."""
        return self.process.children(recursive=True)

    def serving(self) -> psutil.Process:
        """The worker that has the model."""
        with Client.connect(self.socket) as client:
            entries = client.call("model/list").models
        return psutil.Process(next(entry.pid for entry in entries if entry.pid is not None))

    def preload(self) -> dict[str, str]:
        """What the environment of the loaded worker has of the BLAS bridge: a process like it needs the same."""
        environment = self.serving().environ()
        return {name: environment[name] for name in native.preload_environment(1) if name in environment}

    def load_model(self, say: Say) -> Path:
        """Pull the default model if it is not here, load it, and give its folder."""
        with Client.connect(self.socket) as client:
            pulled = client.call("model/pull", {"model": MODEL})
            assert isinstance(pulled, PullResult)
            say(f"loading {MODEL}")
            client.call("model/load", {"model": MODEL})
        return Path(pulled.path)


@contextmanager
def supervisor_child(
    *, worker: Mapping[str, Any] | None = None, model: Mapping[str, Any] | None = None
) -> Iterator[SupervisorChild]:
    """`mlxsup start` with these keys of `[worker]` and of the default model; all else as it comes, but that no beginnings are kept:
    whoever is asked the same again computes the same again.
    """
    tables = {"worker": worker or {}, f"models.{MODEL}": KEEPS_NO_BEGINNINGS | dict(model or {})}
    with (
        tempfile.TemporaryDirectory(prefix="mlxsup-bench-") as folder,
        running_supervisor(Path(folder), tables) as child,
    ):
        yield child


@contextmanager
def running_supervisor(
    folder: Path, tables: Mapping[str, Mapping[str, Any]], environment: Mapping[str, str] | None = None
) -> Iterator[SupervisorChild]:
    """`mlxsup start` with these tables of the configuration; that, its socket and its `log` are in `folder`.

    `environment` comes on top of this process's own.
    """
    config = folder / "config.toml"
    config.write_text("".join(_toml(name, keys) for name, keys in tables.items()), encoding="utf-8")
    socket = folder / "s.sock"
    log = folder / LOG
    command = [sys.executable, "-P", "-m", "mlxsup.supervisor", "start"]
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [*command, "--config", str(config), "--socket", str(socket)],
            stderr=stderr,
            # What a person has set for his own supervisor, and what died in it, is no part of the measurement.
            env={name: value for name, value in os.environ.items() if not name.startswith("MLXSUP_")}
            | {"MLXSUP_STATE": str(folder)}
            | dict(environment or {}),
            # A terminal's Ctrl-C is this program's to handle.
            start_new_session=True,
        )
    try:
        _wait_listening(process, socket, log)
        yield SupervisorChild(psutil.Process(process.pid), socket)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def blas_threads(preload: Mapping[str, str]) -> str:
    """In words."""
    return f"{preload['OPENBLAS_NUM_THREADS']} BLAS threads" if preload else "no BLAS bridge"


def thread_keys(threads: int | None) -> dict[str, int]:
    """Keys of `[worker]`: as many BLAS threads as asked for, or as many as a supervisor gives its one worker."""
    return {} if threads is None else {"blas_threads": threads}


def wait_quiet(processes: list[psutil.Process], timeout_s: float = 10.0) -> None:
    """Until these processes use no processor time: whoever is measured next has the machine for itself."""
    deadline_s = time.monotonic() + timeout_s
    before = -1.0
    while (now := sum(map(processor_s, processes))) != before and time.monotonic() < deadline_s:
        before = now
        time.sleep(_QUIET_S)


def processor_s(process: psutil.Process) -> float:
    """Processor time that it has used, in all of its threads."""
    times = process.cpu_times()
    return float(times.user + times.system)


def _wait_listening(process: subprocess.Popen[bytes], socket: Path, log: Path) -> None:
    deadline_s = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline_s:
        with suppress(ConnectionLostError), Client.connect(socket):
            return
        time.sleep(_POLL_S)
    raise RuntimeError(
        f"the supervisor does not listen:\n{log.read_text(encoding='utf-8', errors='replace')}"
    )


def _toml(table: str, keys: Mapping[str, Any]) -> str:
    lines = [f"{key} = {msgspec.json.encode(value).decode()}" for key, value in keys.items()]
    return "\n".join([f"[{table}]", *lines, ""])
