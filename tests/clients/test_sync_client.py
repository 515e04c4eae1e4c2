"""The Python client that blocks."""

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mlxsup.protocol.client.exchange import Notification
from mlxsup.protocol.client.sync import Client, ConnectionLostError, RpcError
from mlxsup.protocol.errors import ErrorKind
from mlxsup.protocol.generation import FinishReason
from mlxsup.protocol.service import Health, Progress, ServerInfo
from tests.clients.conftest import LIMIT_S, limited, question, the_only_child

pytestmark = pytest.mark.slow


@pytest.fixture
def client(server: Path) -> Iterator[Client]:
    with Client.connect(server, timeout_s=LIMIT_S) as client:
        yield client


@pytest.fixture
def stdio(mlxsup: str, as_user: None) -> list[str]:
    return limited(mlxsup, "stdio")


def test_a_stream_gives_pieces_that_together_are_the_text_of_its_result(client: Client, model: str) -> None:
    stream = client.stream("chat", question(model))
    pieces = list(stream)

    assert len(pieces) > 1
    assert stream.result is not None
    assert "".join(pieces) == stream.result.text
    assert "Paris" in stream.result.text


def test_a_cancelled_stream_ends_with_the_text_so_far(client: Client, model: str) -> None:
    stream = client.stream("chat", question(model, "Tell me everything about France.", max_tokens=4096))
    pieces = []
    for piece in stream:
        pieces.append(piece)
        stream.cancel()

    assert stream.result is not None
    assert stream.result.finish_reason is FinishReason.CANCELLED
    assert stream.result.text == "".join(pieces)


def test_an_error_is_raised_as_it_was_answered_and_the_connection_lives_on(
    client: Client, model: str
) -> None:
    with pytest.raises(RpcError, match="temprature") as caught:
        client.call("chat", {**question(model), "temprature": 1})

    assert caught.value.kind is ErrorKind.INVALID_PARAMS
    assert isinstance(client.call("server/info"), ServerInfo)


def test_a_model_that_is_not_here_is_refused_with_what_to_do(client: Client) -> None:
    with pytest.raises(RpcError, match="mlxsup pull") as caught:
        client.call("chat", question("nobody/has-this"))

    assert caught.value.kind is ErrorKind.MODEL_NOT_FOUND


def test_a_spawned_server_loads_with_progress_and_ends_with_its_client(stdio: list[str], model: str) -> None:
    phases = []

    def note(notification: Notification) -> None:
        assert isinstance(notification, Progress)
        phases.append(notification.value["phase"])

    with Client.spawn(stdio) as client:
        child = the_only_child("stdio")
        entry = client.call("model/load", {"model": model}, note)
        worker = psutil.Process(entry.pid)

    assert list(dict.fromkeys(phases)) == ["weights", "tokenizer", "warm", "self-test"]
    assert entry.state == "ready"
    assert not child.is_running()
    assert not worker.is_running()


def test_a_bridge_ends_without_the_supervisor_that_it_led_to(
    client: Client, mlxsup: str, server: Path, model: str
) -> None:
    bridge = limited(mlxsup, "stdio", "--connect", "--socket", str(server))
    with Client.spawn(bridge) as bridged:
        stream = bridged.stream("chat", question(model))
        assert "Paris" in "".join(stream)

    health = client.call("server/health")
    assert isinstance(health, Health)
    assert health.live


def test_a_server_killed_during_a_request_is_a_lost_connection(stdio: list[str], model: str) -> None:
    with Client.spawn(stdio) as client:
        child = the_only_child("stdio")
        with pytest.raises(ConnectionLostError):
            client.call("model/load", {"model": model}, lambda _: child.kill())


@pytest.mark.skipif(not hasattr(os, "waitid"), reason="Python has no waitid on macOS before 3.13")
def test_a_server_killed_before_a_request_is_a_lost_connection(stdio: list[str]) -> None:
    with Client.spawn(stdio) as client:
        client.call("server/info")
        child = the_only_child("stdio")
        child.kill()
        # Dead, and still there for the client to wait for.
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(ConnectionLostError):
            client.call("server/info")


def test_nobody_who_listens_is_a_lost_connection(tmp_path: Path) -> None:
    with pytest.raises(ConnectionLostError, match="cannot connect"):
        Client.connect(tmp_path / "nobody.sock")
