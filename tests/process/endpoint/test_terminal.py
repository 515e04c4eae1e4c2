"""`mlxsup stdio` typed at by a person: a terminal is shared with the shell that comes after."""

import os
import select
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.process.endpoint.conftest import LIMIT_S, User, request

END_OF_FILE = b"\x04"


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """The person's side, and the program's."""
    person, program = os.openpty()
    try:
        yield person, program
    finally:
        os.close(person)
        os.close(program)


def read_until(descriptor: int, text: bytes) -> bytes:
    seen = b""
    while text not in seen:
        readable, _, _ = select.select([descriptor], [], [], LIMIT_S)
        assert readable, seen
        seen += os.read(descriptor, 65536)
    return seen


def converse(user: User, terminal: tuple[int, int]) -> subprocess.Popen[bytes]:
    """Start it and have one request answered."""
    person, program = terminal
    process = user.spawn("stdio", stdin=program, stdout=program, stderr=subprocess.PIPE)
    os.write(person, request(1, "server/info"))
    assert b"limits" in read_until(person, b'"limits"')
    return process


def test_a_terminal_stays_in_blocking_mode_while_it_is_served(user: User, terminal: tuple[int, int]) -> None:
    process = converse(user, terminal)
    assert os.get_blocking(terminal[1])
    assert process.poll() is None


def test_the_end_of_file_ends_it_with_status_0(user: User, terminal: tuple[int, int]) -> None:
    process = converse(user, terminal)
    os.write(terminal[0], END_OF_FILE)
    assert process.wait(LIMIT_S) == 0
    assert process.stderr is not None
    assert process.stderr.read() == b""


def test_a_signal_ends_it_with_status_0_while_a_read_waits(user: User, terminal: tuple[int, int]) -> None:
    process = converse(user, terminal)
    process.send_signal(signal.SIGTERM)
    assert process.wait(LIMIT_S) == 0


def test_a_signal_ends_it_while_the_terminal_takes_no_more_output(
    user: User, terminal: tuple[int, int]
) -> None:
    process = converse(user, terminal)
    # Its answer is longer than what a terminal holds back while nobody looks at it.
    os.write(terminal[0], request(2, "rpc.discover"))
    read_until(terminal[0], b'"openrpc"')
    process.send_signal(signal.SIGTERM)
    assert process.wait(LIMIT_S) == 0
