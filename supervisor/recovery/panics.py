"""Kernel panics that the GPU's driver took the machine down with, from the reports that macOS leaves. Edge."""

import sys
from pathlib import Path

# Readable by an administrator's account; elsewhere nothing is known.
REPORTS = Path("/Library/Logs/DiagnosticReports")
# In the text of panics that MLX's users reported: the memory of the GPU, its driver, and the watchdog that it starved.
_SIGNS = (b"IOGPU", b"AGX", b"completeMemory()", b"cpt_mapcnt_inc", b"no checkins from watchdogd")
_READ_BYTES = 1024 * 1024


def gpu_panics(since_s: float, folder: Path = REPORTS, platform: str = sys.platform) -> int:
    """How many there were since a moment of the wall clock; 0 where nothing can be known."""
    if platform != "darwin":
        return 0
    return sum(_is_gpu_panic(path, since_s) for path in folder.glob("*.panic"))


def _is_gpu_panic(report: Path, since_s: float) -> bool:
    try:
        if report.stat().st_mtime < since_s:
            return False
        with report.open("rb") as file:
            beginning = file.read(_READ_BYTES)
    except OSError:
        return False
    return any(sign in beginning for sign in _SIGNS)
