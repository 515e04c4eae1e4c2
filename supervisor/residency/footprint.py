"""What a process really holds of the memory: on a Mac its resident pages are not it. Edge.

There the memory of Metal buffers counts for the process that uses them without being resident in it, and compressed pages
still have to be kept: a worker of 50 GB was seen with 33 MB resident. The kernel's own ledger knows.
"""

import ctypes
import functools
import sys
from collections.abc import Callable
from typing import Any

import psutil

_RUSAGE_INFO_V0 = 0


class RusageInfo(ctypes.Structure):
    """`struct rusage_info_v0` of <sys/resource.h> on macOS; in bytes what is memory."""

    _fields_ = (
        ("uuid", ctypes.c_uint8 * 16),
        ("user_time", ctypes.c_uint64),
        ("system_time", ctypes.c_uint64),
        ("package_idle_wakeups", ctypes.c_uint64),
        ("interrupt_wakeups", ctypes.c_uint64),
        ("pageins", ctypes.c_uint64),
        ("wired_size", ctypes.c_uint64),
        ("resident_size", ctypes.c_uint64),
        ("phys_footprint", ctypes.c_uint64),
        ("start_abstime", ctypes.c_uint64),
        ("exit_abstime", ctypes.c_uint64),
    )


ProcPidRusage = Callable[[int, int, Any], int]


@functools.cache
def _proc_pid_rusage() -> ProcPidRusage | None:
    if sys.platform == "darwin":
        found: ProcPidRusage | None = getattr(ctypes.CDLL(None), "proc_pid_rusage", None)
        return found
    return None


def held_bytes(process: psutil.Process, ask: ProcPidRusage | None = None) -> int:
    """The physical footprint or what is wired, whichever is more; where the system has no such figure, what is resident.

    Raises:
        psutil.Error, OSError: the process has ended, or the system can't say.
    """
    ask = ask or _proc_pid_rusage()
    info = RusageInfo()
    if ask is not None and ask(process.pid, _RUSAGE_INFO_V0, ctypes.byref(info)) == 0:
        return max(int(info.phys_footprint), int(info.wired_size))
    return int(process.memory_info().rss)
