"""A worker's operating system process: how it is spawned, signalled and waited for. Edge."""

import errno
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import Protocol

import msgspec
import psutil
import trio

from mlxsup.supervisor.pool.oom_counter import find_oom_counter, read_oom_kills
from mlxsup.supervisor.residency.footprint import held_bytes

# Of a process's name.
_NAME_CHARS_MAX = 40
# To find a process anew for each look costs more than the look; so many are kept.
_PROCESSES_MAX = 256
# Workers are looked at one by one, and the machine's memory is that of all.
_AVAILABLE_AGE_S = 0.25
# psutil hands on what a system call or a file of /proc fails with, and a Mac's calls fail as RuntimeError.
_CANT_SAY = (psutil.Error, OSError, RuntimeError)


class Observation(msgspec.Struct, frozen=True):
    """What the system says of a worker's process, and of the machine's memory.

    `resident_bytes` is what the process holds; on a Mac also what is compressed, or belongs to the GPU.
    """

    resident_bytes: int
    available_bytes: int
    stopped: bool


class ChildProcess(Protocol):
    """What a worker is served through; a test hands in one that lives in memory."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None:
        """None while it lives; negative for a signal, as `subprocess` gives it."""
        ...

    @property
    def stdin(self) -> trio.abc.SendStream: ...

    @property
    def stdout(self) -> trio.abc.ReceiveStream: ...

    @property
    def stderr(self) -> trio.abc.ReceiveStream: ...

    async def wait(self) -> int: ...

    def signal_group(self, number: signal.Signals) -> None:
        """Signal it and all that it has forked; does nothing when none of them is left."""
        ...

    def oom_kills(self) -> int | None:
        """How often the kernel has ended a process for want of memory where this one runs; None where nothing counts."""
        ...


class SpawnedProcess:
    """A real one, the leader of a process group of its own."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._process = process
        self._oom_counter = find_oom_counter(process.pid)
        self.stdin: trio.abc.SendStream = process.stdin
        self.stdout: trio.abc.ReceiveStream = process.stdout
        self.stderr: trio.abc.ReceiveStream = process.stderr

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    async def wait(self) -> int:
        return await self._process.wait()

    def signal_group(self, number: signal.Signals) -> None:
        # It leads its own group, so its pid is the group's id. EPERM: only zombies are left (macOS).
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def oom_kills(self) -> int | None:
        return None if self._oom_counter is None else read_oom_kills(self._oom_counter)


async def spawn_process(command: list[str], environment: dict[str, str]) -> SpawnedProcess:
    """Not cancellable half way: once it returns, the process is the caller's to end.

    Raises:
        OSError: it could not be spawned.
    """
    try:
        process = await trio.lowlevel.open_process(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            cwd="/",
            # A terminal's Ctrl-C is ours to handle, and one signal reaches all its children. No session of its own: the
            # kernel wakes a group with a stopped process when the last parent in its session dies, and that are we.
            process_group=0,
        )
    except (ValueError, RuntimeError) as error:
        # A command with a NUL in it; no thread left to spawn it from.
        raise OSError(errno.EINVAL, str(error)) from error
    try:
        return SpawnedProcess(process)
    except BaseException:
        # Nobody would ever know of it.
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    await trio.aclose_forcefully(stream)
        raise


class Observer:
    """Asks the system about processes and memory. It never raises.

    Where the system can't say, as without a free file descriptor, a process counts as one of which nothing is known,
    and the machine's memory is what it was.
    """

    def __init__(self) -> None:
        self._available_bytes = 0
        self._looked_s = -math.inf
        self._processes: dict[int, psutil.Process] = {}

    def observe(self, pid: int) -> Observation:
        """What the system says of a worker; of one that has just ended, nothing held and not stopped."""
        try:
            process = self._find(pid)
            resident, status = held_bytes(process), process.status()
        except _CANT_SAY:
            self._processes.pop(pid, None)
            resident, status = 0, psutil.STATUS_DEAD
        return Observation(
            resident_bytes=resident,
            available_bytes=self._lately_available_bytes(),
            stopped=status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP),
        )

    def _find(self, pid: int) -> psutil.Process:
        found = self._processes.get(pid)
        if found is None:
            found = psutil.Process(pid)
            if len(self._processes) >= _PROCESSES_MAX:
                self._processes.clear()
            self._processes[pid] = found
        return found

    def _lately_available_bytes(self) -> int:
        is_recent = time.monotonic() - self._looked_s <= _AVAILABLE_AGE_S
        return self._available_bytes if is_recent else self.available_bytes()

    def available_bytes(self) -> int:
        """What can be given to a new process without swapping; 0 until it was ever known."""
        self._looked_s = time.monotonic()
        with suppress(*_CANT_SAY):
            self._available_bytes = int(psutil.virtual_memory().available)
        return self._available_bytes

    @staticmethod
    def total_bytes() -> int:
        """What the machine has; no less than any process could want when that can't be known."""
        with suppress(*_CANT_SAY):
            return int(psutil.virtual_memory().total)
        return sys.maxsize


def resident_bytes(pid: int) -> int | None:
    """None when it has ended, or the system can't say."""
    try:
        return held_bytes(psutil.Process(pid))
    except _CANT_SAY:
        return None


def process_name(pid: int) -> str | None:
    """None when it has ended, or the system can't say. A process may call itself anything."""
    try:
        name = psutil.Process(pid).name()
    except _CANT_SAY:
        return None
    return "".join(char if char.isprintable() else "?" for char in name[:_NAME_CHARS_MAX])
