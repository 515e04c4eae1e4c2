"""Runs the converter, a program of the worker's side: mlx and the GGUF stay in its process. Edge."""

import signal
import subprocess
import sys
from pathlib import Path

import msgspec

from mlxsup.supervisor.models.fetcher.child import child_environment
from mlxsup.supervisor.models.fetcher.faults import cannot_pull

_SECONDS_MAX = 1800.0


class _Report(msgspec.Struct):
    version: int | None = None
    refused: str | None = None


def run_converter(source: Path, target: Path) -> int:
    """Convert the GGUF `source` into the folder `target`; returns the converter's version.

    Raises:
        RpcError: the file was refused, or the converter died or didn't end.
    """
    command = [sys.executable, "-P", "-m", "mlxsup.worker.convert", str(source), str(target)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            check=False,
            timeout=_SECONDS_MAX,
            env=child_environment(),
        )
    except subprocess.TimeoutExpired:
        raise cannot_pull(
            f"converting it took over {_SECONDS_MAX:.0f} s; pull again on a less busy machine"
        ) from None
    report = _read(done.stdout)
    if report.refused is not None:
        raise cannot_pull(report.refused)
    if done.returncode != 0 or report.version is None:
        raise cannot_pull(f"the converter {_ending(done.returncode)}; its stderr says why")
    return report.version


def _read(stdout: bytes) -> _Report:
    lines = stdout.splitlines()
    try:
        return msgspec.json.decode(lines[-1] if lines else b"", type=_Report)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Report()


def _ending(status: int) -> str:
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
