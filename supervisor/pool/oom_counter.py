"""How often the kernel has ended a process for want of memory, counted where a worker runs. Edge; Linux only.

The kernel counts each such end in the memory cgroup of the process that it chose, whether the group's own limit or the
whole machine was exhausted. Where there is no such group the count of the machine stands in for it.
"""

import re
from pathlib import Path

_PROC = Path("/proc")
_COUNT = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)
# Of each line of mountinfo: the root of the mount within its file system, where it is, its type, its own options.
_MOUNT = re.compile(r"^\d+ \d+ \S+ (\S+) (\S+) .* - (cgroup2?) \S+ (\S+)$", re.MULTILINE)


def find_oom_counter(pid: int, proc: Path = _PROC) -> Path | None:
    """The file that counts for this process, while it lives; None where nothing counts."""
    try:
        groups = _read(proc / str(pid) / "cgroup")
        mounts = _read(proc / "self" / "mountinfo")
    except OSError:
        groups = mounts = ""
    candidates = [*_group_counters(groups, mounts), proc / "vmstat"]
    return next((path for path in candidates if read_oom_kills(path) is not None), None)


def read_oom_kills(path: Path) -> int | None:
    """None for a file that is gone, as that of a group that has ended, or that counts no such thing."""
    try:
        match = _COUNT.search(_read(path))
    except OSError:
        return None
    return None if match is None else int(match[1])


def _read(path: Path) -> str:
    """Names of groups and mount points are bytes of any kind, and come back as they were in a path made of them."""
    return path.read_text(encoding="utf-8", errors="surrogateescape")


def _group_counters(groups: str, mounts: str) -> list[Path]:
    """Of a line `4:memory:/group` (version 1) and of the line `0::/group` (version 2); a machine can have both."""
    found = []
    for line in groups.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        for root, point, kind, options in _MOUNT.findall(mounts):
            if kind == "cgroup" and "memory" in controllers.split(",") and "memory" in options.split(","):
                found.append(_below(point, root, group) / "memory.oom_control")
            elif kind == "cgroup2" and number == "0":
                found.append(_below(point, root, group) / "memory.events")
    return found


def _below(point: str, root: str, group: str) -> Path:
    """Within a container only the part below the container's own group is mounted, and may be named with it or without."""
    return Path(point, group.removeprefix(root.rstrip("/")).lstrip("/"))
