"""What the figures were measured on. Edge."""

import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import psutil

_PACKAGES = ("mlxsup", "mlx", "mlx-lm", "trio", "msgspec")


def describe_machine() -> dict[str, str]:
    return {
        "cpu": _cpu_model(),
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
        "commit": _commit(),
    }


def describe_load() -> tuple[float, float, float]:
    """How busy the machine is with other things: look at it before believing a figure."""
    return os.getloadavg()


def _cpu_model() -> str:
    if sys.platform == "darwin":
        return _output(["sysctl", "-n", "machdep.cpu.brand_string"])
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _commit() -> str:
    folder = str(Path(__file__).parent)
    commit = _output(["git", "-C", folder, "rev-parse", "--short", "HEAD"])
    changed = _output(["git", "-C", folder, "status", "--porcelain", "--untracked-files=no"])
    return f"{commit} with changes" if changed not in ("", "unknown") else commit


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
