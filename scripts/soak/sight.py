"""What the system says of a supervisor and of all that it has started. Edge."""

import re
import time
from collections.abc import Collection
from datetime import datetime
from pathlib import Path

import msgspec
import psutil

from scripts.benchmarks.supervisor_child import processor_s

# A worker that imports uses its core all the time; one that waits for a model uses none.
_QUIET_S = 0.25
_NOTICED = re.compile(
    rb"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) ERROR worker (\d+) is stuck in ", re.MULTILINE
)


class Holdings(msgspec.Struct, frozen=True, kw_only=True):
    """What a supervisor holds."""

    descriptors: int
    children: int
    zombies: int
    resident_bytes: int

    def is_no_more_than(self, other: "Holdings") -> bool:
        """But for memory, which comes and goes."""
        return self.descriptors <= other.descriptors and self.children <= other.children and not self.zombies


class Sight:
    """`home` is the HOME of everything that the supervisor starts, and of nothing else."""

    def __init__(self, supervisor: psutil.Process, home: Path) -> None:
        self._supervisor = supervisor
        self.home = home
        # Of children, what they had used of the processor, and since when they have used no more.
        self._used_s: dict[int, tuple[float, float]] = {}

    def holdings(self) -> Holdings:
        children = self._supervisor.children()
        return Holdings(
            descriptors=self._supervisor.num_fds(),
            children=len(children),
            zombies=sum(_status(child) == psutil.STATUS_ZOMBIE for child in children),
            resident_bytes=int(self._supervisor.memory_info().rss),
        )

    def resident_bytes(self) -> int:
        return int(self._supervisor.memory_info().rss)

    def children(self) -> list[int]:
        """Processes that live, the oldest first."""
        children = self._supervisor.children()
        living = [child for child in children if _status(child) not in (None, psutil.STATUS_ZOMBIE)]
        return [child.pid for child in living]

    def ready_spares(self, workers: Collection[int]) -> list[int]:
        """Children beside `workers` that wait for something to do. Asked again and again, it finds them."""
        now_s = time.monotonic()
        found = {}
        for pid in self.children():
            if pid in workers:
                continue
            try:
                used_s = processor_s(psutil.Process(pid))
            except psutil.Error:
                continue
            before = self._used_s.get(pid)
            found[pid] = before if before is not None and before[0] == used_s else (used_s, now_s)
        self._used_s = found
        return [pid for pid, (_, since_s) in found.items() if now_s - since_s >= _QUIET_S]

    def leftovers(self) -> list[int]:
        """Processes that should have ended with the supervisor."""
        found = []
        for process in psutil.process_iter():
            try:
                if (
                    process.environ().get("HOME") == str(self.home)
                    and _status(process) != psutil.STATUS_ZOMBIE
                ):
                    found.append(process.pid)
            except psutil.Error:
                continue
        return found


def is_alive(pid: int) -> bool:
    try:
        return _status(psutil.Process(pid)) not in (None, psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def noticed_stalls(log: Path) -> list[tuple[int, float]]:
    """From the supervisor's log: pids of workers that it found stuck, and the time of day of that."""
    found = []
    for stamp, pid in _NOTICED.findall(log.read_bytes()):
        moment = datetime.strptime(stamp.decode(), "%Y-%m-%d %H:%M:%S,%f").astimezone()
        found.append((int(pid), moment.timestamp()))
    return found


def _status(process: psutil.Process) -> str | None:
    try:
        return str(process.status())
    except psutil.Error:
        return None
