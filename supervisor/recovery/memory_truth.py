"""Whether memory came back when a worker ended, and whether another one fits. Pure.

On a Mac a worker that is killed hard can leave its wired memory behind until the machine restarts; starting one after
the other then takes the machine down (233 restarts were seen). So free memory is measured again before a respawn.
"""

from itertools import combinations
from statistics import median

import msgspec


class MemorySample(msgspec.Struct, frozen=True):
    """At a moment of the monotonic clock: what the worker holds, and what the machine has left, in bytes."""

    at_s: float
    resident_bytes: int
    available_bytes: int


class MemoryLimits(msgspec.Struct, frozen=True, kw_only=True):
    """`stranded_share`: of what the dead worker held, so much may be missing before it is called stranded.

    `headroom_bytes` has to be left when the next one is as large as the last.
    """

    stranded_share: float
    headroom_bytes: int


class Stranded(msgspec.Struct, frozen=True, kw_only=True):
    """Why no worker is started, with the numbers."""

    missing_bytes: int
    available_bytes: int
    needed_bytes: int

    def __str__(self) -> str:
        return (
            f"the last worker left {_mb(self.missing_bytes)} behind: {_mb(self.available_bytes)} are free and another "
            f"needs {_mb(self.needed_bytes)}; close other programs, or restart the machine"
        )


def judge_memory(last: MemorySample | None, available_bytes: int, limits: MemoryLimits) -> Stranded | None:
    """`last` is the newest sample of the worker that ended; None where there was none, then nothing is known."""
    if last is None:
        return None
    missing = last.available_bytes + last.resident_bytes - available_bytes
    needed = last.resident_bytes + limits.headroom_bytes
    if missing > limits.stranded_share * last.resident_bytes and available_bytes < needed:
        return Stranded(missing_bytes=missing, available_bytes=available_bytes, needed_bytes=needed)
    return None


def leak_bytes_per_hour(samples: list[MemorySample]) -> float:
    """The slope of resident memory: the median over all pairs of samples (Theil-Sen), which one that is far off won't move.

    0.0 for fewer than two moments; takes time with the square of their number.
    """
    slopes = [
        (later.resident_bytes - earlier.resident_bytes) / (later.at_s - earlier.at_s)
        for earlier, later in combinations(samples, 2)
        if later.at_s > earlier.at_s
    ]
    return median(slopes) * 3600 if slopes else 0.0


def _mb(count: int) -> str:
    return f"{count / 1e6:.0f} MB"
