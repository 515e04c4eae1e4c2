"""Asking the system about a process fails in many ways, and none of them may end the supervisor."""

import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest
import trio

from mlxsup.supervisor.pool import process
from mlxsup.supervisor.pool.process import Observer, process_name, resident_bytes, spawn_process

COMMAND = [sys.executable, "-c", "input()"]


@contextmanager
def no_free_descriptor() -> Iterator[None]:
    """The next file that is opened fails with EMFILE."""
    bounds = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, bounds[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, bounds)


def test_a_process_and_the_machines_memory_are_seen() -> None:
    seen = Observer().observe(os.getpid())

    assert seen.resident_bytes > 10**6
    assert seen.available_bytes > 10**6
    assert not seen.stopped


@pytest.mark.skipif(sys.platform != "linux", reason="a Mac is asked without any file")
def test_without_a_free_descriptor_nothing_is_known_of_a_process_and_memory_is_what_it_was() -> None:
    observer, fresh = Observer(), Observer()
    before = observer.available_bytes()
    with no_free_descriptor():
        seen, unknown = observer.observe(os.getpid()), fresh.available_bytes()
        resident, name = resident_bytes(os.getpid()), process_name(os.getpid())

    assert (seen.resident_bytes, seen.available_bytes, seen.stopped) == (0, before, False)
    assert (unknown, resident, name) == (0, None, None)


@pytest.mark.parametrize("error", [psutil.NoSuchProcess(1), OSError(24, "too many"), RuntimeError("mach")])
def test_whatever_psutil_raises_is_no_answer(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(psutil, "Process", fail)
    monkeypatch.setattr(psutil, "virtual_memory", fail)

    assert Observer().observe(1).resident_bytes == 0
    assert resident_bytes(1) is None
    assert process_name(1) is None


async def test_a_child_that_the_supervisor_fails_to_take_over_is_ended_and_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spawned: list[int] = []

    def fail(pid: int) -> None:
        spawned.append(pid)
        raise ValueError("whatever stands in /proc")

    monkeypatch.setattr(process, "find_oom_counter", fail)
    with trio.fail_after(30), pytest.raises(ValueError, match="whatever"):
        await spawn_process(COMMAND, dict(os.environ))

    with pytest.raises(ProcessLookupError):
        os.kill(spawned[0], signal.SIGCONT)


async def test_a_command_that_is_none_cannot_be_spawned() -> None:
    with pytest.raises(OSError, match="null byte"):
        await spawn_process(["/bin/tr\0ue"], {})


async def test_without_a_free_thread_nothing_is_spawned(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object, **__: object) -> None:
        await trio.lowlevel.checkpoint()
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.to_thread, "run_sync", fail)
    with pytest.raises(OSError, match="new thread"):
        await spawn_process(COMMAND, {})
