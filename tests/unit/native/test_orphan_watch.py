"""The watch, in real processes that hold the GIL in native code, where no thread of Python could act."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlxsup.native import orphan, watch_orphan

pytestmark = pytest.mark.usefixtures("orphan_watch")

EXIT_CODE = 75
WAIT_S = 10  # far more than the watch needs, far less than a child that is not ended would take

# PyDLL calls without releasing the GIL.
PRELUDE = f"""
import ctypes, os, sys
from mlxsup.native import watch_orphan
libc = ctypes.PyDLL(None)
def say(word): os.write(1, word.encode() + b"\\n")
def arm(grace_ms): return watch_orphan(0, grace_ms, {EXIT_CODE})
def hold_gil_ms(ms): libc.usleep(ms * 1000)
"""


@contextmanager
def child(script: str, stdin: int = subprocess.PIPE) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", PRELUDE + script], stdin=stdin, stdout=subprocess.PIPE
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def heard(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().decode().strip()


def close_stdin(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()


def test_a_process_stuck_in_native_code_ends_when_its_stdin_is_closed() -> None:
    with child("arm(0); say('armed'); libc.sleep(60)") as process:
        assert heard(process) == "armed"
        close_stdin(process)
        assert process.wait(WAIT_S) == EXIT_CODE


def test_unread_data_does_not_hide_the_end_of_stdin() -> None:
    with child("arm(0); say('armed'); libc.sleep(60)") as process:
        assert heard(process) == "armed"
        assert process.stdin is not None
        process.stdin.write(b"a request that nobody reads\n")
        close_stdin(process)
        assert process.wait(WAIT_S) == EXIT_CODE


def test_a_process_whose_stdin_stays_open_lives_and_loses_no_data() -> None:
    script = "arm(0); say('armed'); sys.stdin.read(1); hold_gil_ms(600); say(sys.stdin.readline())"
    with child(script) as process:
        assert heard(process) == "armed"
        assert process.stdin is not None
        process.stdin.write(b"-whole line\n")
        process.stdin.flush()
        assert heard(process) == "whole line"
        assert process.wait(WAIT_S) == 0


def test_a_process_ends_when_its_parent_dies_though_its_stdin_stays_open() -> None:
    outliving = f"arm(0); say('armed'); libc.sleep({WAIT_S}); say('outlived its parent')"
    parent = f"""
import subprocess
subprocess.Popen([sys.executable, "-P", "-c", {PRELUDE + outliving!r}])
libc.sleep(60)
"""
    stdin, stdin_of_children = os.pipe()
    try:
        with child(parent, stdin=stdin) as process:
            assert heard(process) == "armed"  # said by the child's child: they share stdout
            process.send_signal(signal.SIGKILL)
            assert process.stdout is not None
            assert process.stdout.read() == b"", "stdout ends when the last process that holds it does"
    finally:
        os.close(stdin)
        os.close(stdin_of_children)


def test_an_orderly_end_within_the_grace_keeps_its_own_exit_code() -> None:
    with child("arm(60_000); say('armed'); sys.stdin.read(); sys.exit(3)") as process:
        assert heard(process) == "armed"
        close_stdin(process)
        assert process.wait(WAIT_S) == 3


def test_the_grace_can_be_shortened_after_the_end_of_stdin() -> None:
    script = "watch = arm(60_000); say('armed'); sys.stdin.read(); watch.set_grace_ms(0); libc.sleep(60)"
    with child(script) as process:
        assert heard(process) == "armed"
        close_stdin(process)
        assert process.wait(WAIT_S) == EXIT_CODE


def test_the_grace_can_be_prolonged_after_the_end_of_stdin() -> None:
    script = "watch = arm(500); say('armed'); sys.stdin.read(); watch.set_grace_ms(60_000); hold_gil_ms(700)"
    with child(script) as process:
        assert heard(process) == "armed"
        close_stdin(process)
        assert process.wait(WAIT_S) == 0


def test_one_process_has_one_watch() -> None:
    script = """
arm(0)
try:
    arm(0)
except OSError as error:
    say(str(error.errno))
"""
    with child(script) as process:
        assert heard(process) == str(errno.EALREADY)


def test_a_descriptor_that_is_not_open_cannot_be_watched() -> None:
    with pytest.raises(OSError, match="cannot watch descriptor 987") as raised:
        watch_orphan(987, grace_ms=0, exit_code=EXIT_CODE)
    assert raised.value.errno == errno.EBADF


@pytest.mark.parametrize(("grace_ms", "exit_code"), [(-1, 75), (2**31, 75), (0, -1), (0, 256)])
def test_numbers_that_c_would_misread_are_refused(grace_ms: int, exit_code: int) -> None:
    with pytest.raises(ValueError, match="cannot"):
        watch_orphan(0, grace_ms, exit_code)


def test_without_the_compiled_part_there_is_no_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_built(name: str) -> Path | None:
        return None

    monkeypatch.setattr(orphan, "shared_object_path", not_built)
    assert watch_orphan(0, grace_ms=0, exit_code=EXIT_CODE) is None
