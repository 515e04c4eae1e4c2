"""The socket of `mlxsup start`, from the first start to every way of ending."""

import os
import resource
import signal
import socket
import stat
from contextlib import ExitStack

import pytest

from mlxsup.protocol.client.exchange import ConnectionLostError
from mlxsup.protocol.client.sync import Client
from tests.process.endpoint.conftest import LIMIT_S, User


def mode(path: os.PathLike[str]) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def test_only_the_user_can_reach_the_socket(user: User) -> None:
    old = os.umask(0)
    try:
        supervisor = user.start()
    finally:
        os.umask(old)
    assert stat.S_ISSOCK(os.lstat(supervisor.socket).st_mode)
    assert mode(supervisor.socket) == 0o600
    assert mode(supervisor.socket.parent) == 0o700
    assert {mode(path) for path in supervisor.socket.parent.iterdir()} == {0o600}


def test_a_second_supervisor_on_the_same_socket_is_refused_and_the_first_goes_on(user: User) -> None:
    supervisor = user.start()
    second = user.run("start")
    assert (second.status, second.stdout) == (1, b"")
    assert second.stderr.strip() == (
        "mlxsup: a supervisor already runs on this socket: stop it with `mlxsup stop`, or use --socket"
    )
    with supervisor.connect() as client:
        assert client.call("server/health").live


def test_the_socket_that_a_killed_supervisor_left_is_replaced(user: User) -> None:
    killed = user.start()
    killed.process.kill()
    killed.wait()
    assert killed.socket.is_socket()
    with user.start().connect() as client:
        assert client.call("server/health").live


def test_a_file_where_the_socket_should_be_is_left_alone(user: User) -> None:
    user.socket.parent.mkdir()
    user.socket.write_text("mine")
    refused = user.run("start")
    assert (refused.status, refused.stdout) == (1, b"")
    assert (
        refused.stderr.strip() == "mlxsup: cannot use this socket path: something else is there; use --socket"
    )
    assert user.socket.read_text() == "mine"


def test_a_path_too_long_for_a_socket_is_refused_in_words(user: User) -> None:
    refused = user.run("start", "--socket", str(user.folder / ("x" * 104)))
    assert refused.status == 1
    assert "longer than 103 bytes" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_folder_that_cannot_be_made_is_refused_in_words(user: User) -> None:
    (user.folder / "file").write_text("")
    refused = user.run("start", "--socket", str(user.folder / "file" / "s.sock"))
    assert refused.status == 1
    assert refused.stderr.startswith("mlxsup: cannot use the socket's folder: ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_status_0_and_takes_the_socket_away(user: User, number: signal.Signals) -> None:
    supervisor = user.start()
    with supervisor.connect() as client:
        assert client.call("server/health").live
        supervisor.process.send_signal(number)
        client.wait_closed()
    assert supervisor.wait() == 0
    assert not supervisor.socket.exists()


def test_stop_ends_it_and_says_so(user: User) -> None:
    supervisor = user.start()
    stopped = user.run("stop")
    assert (stopped.status, stopped.stdout) == (0, b"stopped\n")
    assert supervisor.wait() == 0


def test_a_shutdown_is_answered_before_the_connection_closes(user: User) -> None:
    supervisor = user.start()
    with supervisor.connect() as client:
        client.call("server/shutdown", {"drain_ms": 0})
        client.wait_closed()
    assert supervisor.wait() == 0


@pytest.mark.parametrize("command", ["stop", "status", "list"])
def test_without_a_supervisor_commands_say_how_to_start_one(user: User, command: str) -> None:
    refused = user.run(command)
    assert (refused.status, refused.stdout) == (1, b"")
    assert "`mlxsup start` starts it" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_flag_comes_before_the_environment_and_that_before_the_file(user: User) -> None:
    user.config.write_text('[server]\nsocket = "from_file.sock"')
    flag = user.folder / "flag.sock"
    user.start("--socket", str(flag))
    user.start()
    for path in (flag, user.socket):
        with Client.connect(path, timeout_s=LIMIT_S) as client:
            assert client.call("server/health").live
    assert not (user.folder / "from_file.sock").exists()


def test_one_client_too_many_is_told_and_closed_and_the_others_go_on(user: User) -> None:
    user.config.write_text("[server]\nconnections_max = 1")
    supervisor = user.start()
    with supervisor.connect() as first:
        assert first.call("server/stats").supervisor.connections == 1
        with socket.socket(socket.AF_UNIX) as second:
            second.settimeout(LIMIT_S)
            second.connect(str(supervisor.socket))
            told = b"".join(iter(lambda: second.recv(4096), b""))
        assert b'"kind":"overloaded"' in told
        assert told.endswith(b"\n")
        assert first.call("server/health").live


def test_a_client_that_vanishes_leaves_a_supervisor_that_serves(user: User) -> None:
    supervisor = user.start()
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(supervisor.socket))
            client.sendall(b'{"jsonrpc": "2.0", "id": 1, "method": "server/info"}\n' * 50)
    with supervisor.connect() as client:
        assert client.call("server/health").live
    with pytest.raises(ConnectionLostError):
        Client.connect(supervisor.socket.with_name("nobody.sock"))


def test_as_many_clients_as_configured_are_served_where_the_shell_allows_fewer_open_files(user: User) -> None:
    clients_max = 100
    user.config.write_text(f"[server]\nconnections_max = {clients_max}\n")
    bounds = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, bounds[1]))
    try:
        supervisor = user.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, bounds)
    with ExitStack() as stack:
        clients = [stack.enter_context(supervisor.connect()) for _ in range(clients_max)]
        assert [client.call("server/health").live for client in clients] == [True] * clients_max
