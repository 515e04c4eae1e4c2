"""Where a signal came from, in real processes that it ends: the line says it, and the end is what it was without it."""

import errno
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from mlxsup.native import report_signal_origin, signal_origin

pytestmark = pytest.mark.usefixtures("signal_origin")

WAIT_S = 20  # far more than a child needs, far less than one that does not end would take
KEY = "0123456789abcdef"
LINE = re.compile(rf"^mlxsup: signal (\d+) (raised here|sent by process (\d+)) \({KEY}\)$", re.MULTILINE)

# PyDLL calls without releasing the GIL. A limit on cores, since each of these ends would leave one.
PRELUDE = f"""
import ctypes, faulthandler, os, resource, signal, sys
from mlxsup.native import report_signal_origin
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
libc = ctypes.PyDLL(None)
def say(word): os.write(1, word.encode() + b"\\n")
def arm(): assert report_signal_origin("{KEY}")
faulthandler.enable()
"""
# What is heard is said while the call that holds the GIL goes on: no handler of Python can run from then on.
HOLD_GIL = "arm(); libc.system(b'echo armed; read line')"

SIGNALS = [signal.SIGABRT, signal.SIGTRAP, signal.SIGTERM]
# macOS makes these look like faults of the process's own, whoever sent them.
FAULTS = [signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE]
TOLD = SIGNALS + FAULTS if sys.platform == "linux" else SIGNALS

faults_are_told = pytest.mark.skipif(
    sys.platform != "linux", reason="this kernel does not say who sent a fault"
)


def start(script: str, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-c", PRELUDE + script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Close its stdin; its status, and all that it wrote to stderr."""
    with process:
        try:
            _, stderr = process.communicate(timeout=WAIT_S)
        finally:
            process.kill()
    return process.returncode, stderr


def send(process: subprocess.Popen[str], number: signal.Signals) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "armed\n"
    process.send_signal(number)


@pytest.mark.parametrize("number", TOLD)
def test_a_signal_from_outside_names_its_sender_while_native_code_holds_the_gil(
    number: signal.Signals,
) -> None:
    process = start(HOLD_GIL)
    send(process, number)
    status, stderr = end(process)

    assert status == -number
    assert [match.group(1, 3) for match in LINE.finditer(stderr)] == [(str(int(number)), str(os.getpid()))]


@pytest.mark.skipif(sys.platform != "darwin", reason="what macOS does")
@pytest.mark.parametrize("number", FAULTS)
def test_where_the_kernel_names_nobody_nothing_is_said(number: signal.Signals) -> None:
    process = start(HOLD_GIL)
    send(process, number)
    status, stderr = end(process)

    assert status == -number
    assert not LINE.search(stderr)


OWN_ENDS = {
    "a call of abort": ("libc.abort()", signal.SIGABRT),
    "a signal that it sends itself": ("os.kill(os.getpid(), signal.SIGABRT)", signal.SIGABRT),
    "a signal that it queues for a thread": (
        "signal.pthread_kill(__import__('threading').get_ident(), signal.SIGTRAP)",
        signal.SIGTRAP,
    ),
}
LOST_PAGE = """
import mmap, tempfile
file = tempfile.TemporaryFile()
file.truncate(mmap.PAGESIZE)
page = (ctypes.c_char * 1).from_buffer(mmap.mmap(file.fileno(), mmap.PAGESIZE))
file.truncate(0)
page[0]
"""
OWN_FAULTS = {
    "a null pointer": ("ctypes.string_at(0)", signal.SIGSEGV),
    "a null pointer with the GIL held": ("libc.strlen(None)", signal.SIGSEGV),
    "an overflow of the stack": ("faulthandler._stack_overflow()", signal.SIGSEGV),
    "a division by zero": ("faulthandler._sigfpe()", signal.SIGFPE),
    "a fault's signal that it sends itself": ("os.kill(os.getpid(), signal.SIGSEGV)", signal.SIGSEGV),
    "a page that its file has lost": (LOST_PAGE, signal.SIGBUS),
}


def check_own_end(script: str, number: signal.Signals) -> None:
    status, stderr = end(start(f"arm()\n{script}"))

    assert status == -number
    assert [match.group(1, 2) for match in LINE.finditer(stderr)] == [(str(int(number)), "raised here")]


@pytest.mark.parametrize("what", OWN_ENDS)
def test_an_end_of_its_own_is_called_so(what: str) -> None:
    check_own_end(*OWN_ENDS[what])


@faults_are_told
@pytest.mark.parametrize("what", OWN_FAULTS)
def test_a_fault_of_its_own_is_called_so(what: str) -> None:
    check_own_end(*OWN_FAULTS[what])


def test_the_stacks_are_dumped_as_without_it() -> None:
    _, stderr = end(start("def inner(): libc.abort()\narm(); inner()"))

    before, line, after = stderr.partition("mlxsup: signal 6 raised here")
    assert line
    assert "Fatal Python error: Aborted" not in before
    assert "Fatal Python error: Aborted" in after
    assert "in inner" in after


def test_a_handler_of_python_runs_as_without_it_as_often_as_it_is_called() -> None:
    script = """
signal.signal(signal.SIGTERM, lambda *_: say("asked to end"))
arm()
say("armed")
sys.stdin.read()
"""
    process = start(script)
    assert process.stdout is not None
    assert process.stdout.readline() == "armed\n"
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "asked to end\n"
    status, stderr = end(process)

    assert status == 0
    assert [match[3] for match in LINE.finditer(stderr)] == [str(os.getpid())], (
        "said once, however often it comes"
    )


def test_who_asked_it_to_end_is_told_though_python_cannot_hear_it() -> None:
    with start(f"signal.signal(signal.SIGTERM, lambda *_: say('heard')); {HOLD_GIL}") as process:
        try:
            send(process, signal.SIGTERM)
            assert process.stderr is not None
            assert process.stderr.readline() == "\n"
            assert LINE.match(process.stderr.readline())
        finally:
            process.kill()
        assert process.stdin is not None
        process.stdin.close()
        assert process.stdout is not None
        assert process.stdout.read() == ""


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    script = "signal.signal(signal.SIGTERM, signal.SIG_IGN); arm(); say('armed'); sys.stdin.read()"
    process = start(script)
    send(process, signal.SIGTERM)
    status, stderr = end(process)

    assert (status, stderr) == (0, "")


def test_an_unread_pipe_does_not_keep_a_process_from_ending() -> None:
    reading, writing = os.pipe()
    try:
        os.set_blocking(writing, False)
        with suppress(BlockingIOError):
            while True:
                os.write(writing, bytes(1 << 16))
        os.set_blocking(writing, True)
        process = start(HOLD_GIL, stderr=writing)
        send(process, signal.SIGTERM)
        assert end(process)[0] == -signal.SIGTERM
    finally:
        os.close(reading)
        os.close(writing)


def test_a_closed_stderr_does_not_keep_a_process_from_ending() -> None:
    process = start("arm(); os.close(2); say('armed'); libc.sleep(60)")
    send(process, signal.SIGTERM)
    assert end(process)[0] == -signal.SIGTERM


@pytest.mark.skipif(sys.platform != "linux", reason="finds its own memory in /proc")
def test_a_fault_within_the_handler_ends_the_process_all_the_same() -> None:
    script = """
arm()
for line in open("/proc/self/maps"):
    if "signal_origin.so" in line and " rw-" in line:
        first, end = (int(address, 16) for address in line.split()[0].split("-"))
        # From here on the handler cannot read what it needs.
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(first), ctypes.c_size_t(end - first), 0) == 0
        say("armed")
libc.strlen(None)
"""
    process = start(script)
    assert process.stdout is not None
    assert process.stdout.readline() == "armed\n"
    status, stderr = end(process)

    assert status == -signal.SIGSEGV
    assert not LINE.search(stderr)


def test_the_end_of_a_forked_child_is_not_told() -> None:
    script = """
arm()
pid = os.fork()
if not pid: os.abort()
say(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
"""
    process = start(script)
    assert process.stdout is not None
    assert process.stdout.readline() == f"{-signal.SIGABRT}\n"
    status, stderr = end(process)

    assert status == 0
    assert "Fatal Python error: Aborted" in stderr
    assert not LINE.search(stderr)


def test_it_is_installed_once_and_after_faulthandler() -> None:
    script = """
faulthandler.disable()
try: arm()
except RuntimeError: say("not yet")
faulthandler.enable()
arm()
try: arm()
except OSError as error: say(str(error.errno))
"""
    process = start(script)
    assert process.stdout is not None
    assert process.stdout.readline() == "not yet\n"
    assert process.stdout.readline() == f"{errno.EALREADY}\n"
    assert end(process)[0] == 0


@pytest.mark.parametrize("key", ["", "ABC", "12 34", "1" * 33, "1\n"])
def test_a_key_that_could_not_be_told_from_the_line_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="as a key"):
        report_signal_origin(key)


def test_without_the_compiled_part_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_built(name: str) -> Path | None:
        return None

    monkeypatch.setattr(signal_origin, "shared_object_path", not_built)
    assert report_signal_origin(KEY) is False
