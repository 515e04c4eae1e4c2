"""`mlxsup stdio`: with pipes, with files, as a bridge."""

import os
import signal
import subprocess

import msgspec
import pytest

from mlxsup.protocol.framing import HEADERS, Frame, HeaderDecoder
from tests.process.endpoint.conftest import LIMIT_S, User, request

THREE = request(1, "server/info") + request("two", "no/method") + b"not json\n" + request(3, "server/health")


def ids(messages: list[dict[str, object]]) -> list[object]:
    return sorted((message["id"] for message in messages), key=repr)


def test_the_end_of_stdin_ends_it_with_status_0_once_everything_is_answered(user: User) -> None:
    finished = user.run("stdio", stdin=THREE)
    assert (finished.status, finished.stderr) == (0, "")
    assert ids(finished.messages) == ["two", 1, 3, None]


def test_the_last_request_needs_no_newline(user: User) -> None:
    assert ids(user.run("stdio", stdin=request(1, "server/info").strip()).messages) == [1]


def test_nothing_is_said_to_who_says_nothing(user: User) -> None:
    finished = user.run("stdio")
    assert (finished.status, finished.stdout, finished.stderr) == (0, b"", "")


def test_header_framing_is_answered_in_header_framing(user: User) -> None:
    finished = user.run("stdio", stdin=HEADERS.encode(request(1, "server/info").strip()))
    (event,) = HeaderDecoder(1 << 20).feed(finished.stdout)
    assert isinstance(event, Frame)
    assert msgspec.json.decode(event.data)["id"] == 1
    assert finished.status == 0


def test_from_a_file_to_a_file_works_as_in_a_shell(user: User) -> None:
    (user.folder / "in").write_bytes(THREE)
    with (user.folder / "in").open("rb") as incoming, (user.folder / "out").open("wb") as outgoing:
        assert user.spawn("stdio", stdin=incoming, stdout=outgoing).wait(LIMIT_S) == 0
    lines = (user.folder / "out").read_bytes().splitlines()
    assert ids([msgspec.json.decode(line) for line in lines]) == ["two", 1, 3, None]


def test_from_nothing_to_nothing_ends_at_once(user: User) -> None:
    process = user.spawn("stdio", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    assert process.wait(LIMIT_S) == 0


def test_a_signal_ends_it_with_status_0_while_stdin_is_open(user: User) -> None:
    process = user.spawn("stdio", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(request(1, "server/info"))
    process.stdin.flush()
    assert msgspec.json.decode(process.stdout.readline())["id"] == 1
    process.send_signal(signal.SIGTERM)
    assert process.wait(LIMIT_S) == 0
    assert process.stdout.read() == b""


def test_a_shutdown_ends_it_while_stdin_is_open(user: User) -> None:
    process = user.spawn("stdio", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(request(1, "server/shutdown"))
    process.stdin.flush()
    assert ids([msgspec.json.decode(line) for line in process.stdout]) == [1]
    assert process.wait(LIMIT_S) == 0


def test_a_reader_that_has_gone_ends_it_without_a_traceback(user: User) -> None:
    process = user.spawn("stdio", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stdin.write(request(1, "server/info"))
    process.stdin.close()
    assert b"Traceback" not in process.stderr.read()
    process.wait(LIMIT_S)


@pytest.mark.parametrize("command", [("stdio",), ("stdio", "--connect")], ids=" ".join)
def test_pipes_are_left_as_they_were_found(shared: User, command: tuple[str, ...]) -> None:
    """Blocking mode belongs to what a shell shares with us, and with whom it runs next."""
    read, ours = os.pipe()
    theirs, write = os.pipe()
    try:
        process = shared.spawn(*command, stdin=read, stdout=write)
        os.write(ours, request(1, "server/info"))
        assert b'"id":1' in os.read(theirs, 65536)
        os.close(ours)
        assert process.wait(LIMIT_S) == 0
        assert os.get_blocking(read)
        assert os.get_blocking(write)
    finally:
        for descriptor in (read, theirs, write):
            os.close(descriptor)


def test_a_bridge_carries_everything_to_the_running_supervisor_and_back(shared: User) -> None:
    subscribe = request(0, "server/stats")
    finished = shared.run("stdio", "--connect", stdin=subscribe + THREE)
    assert (finished.status, finished.stderr) == (0, "")
    assert ids(finished.messages) == ["two", 0, 1, 3, None]
    (stats,) = (message["result"] for message in finished.messages if message["id"] == 0)
    assert stats["supervisor"]["connections"] >= 1


def test_a_bridge_carries_header_framing_too(shared: User) -> None:
    finished = shared.run("stdio", "--connect", stdin=HEADERS.encode(request(1, "server/info").strip()))
    (event,) = HeaderDecoder(1 << 20).feed(finished.stdout)
    assert isinstance(event, Frame)


def test_a_bridge_ends_when_the_supervisor_does(user: User) -> None:
    supervisor = user.start()
    process = user.spawn("stdio", "--connect", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(request(1, "server/shutdown"))
    process.stdin.flush()
    assert ids([msgspec.json.decode(line) for line in process.stdout]) == [1]
    assert process.wait(LIMIT_S) == 0
    assert supervisor.wait() == 0


def test_a_bridge_to_nobody_says_so_on_stderr_alone(user: User) -> None:
    refused = user.run("stdio", "--connect", stdin=THREE)
    assert (refused.status, refused.stdout) == (1, b"")
    assert "start one with `mlxsup start`" in refused.stderr
    assert "Traceback" not in refused.stderr
