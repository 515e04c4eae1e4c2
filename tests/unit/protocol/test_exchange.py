from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxsup.protocol.client import exchange
from mlxsup.protocol.client.exchange import ConnectionLostError, Exchange, read_result
from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import StreamDelta
from mlxsup.protocol.jsonrpc import Response, encode_error, encode_notification, encode_result
from mlxsup.protocol.service import Event, Progress, TokenizeParams, TokenizeResult
from tests.unit.protocol.cutting import cut


def read_all(exchange: Exchange, chunks: list[bytes]) -> list[Any]:
    return [message for chunk in chunks for message in exchange.read(chunk)]


def test_every_request_has_an_id_of_its_own_and_is_one_line() -> None:
    exchange = Exchange()
    first, line = exchange.request("tokenize", TokenizeParams(model="m", text="a\nb"))
    second, _ = exchange.request("server/info", None)
    assert first != second
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    sent = msgspec.json.decode(line)
    assert sent == {
        "jsonrpc": "2.0",
        "id": first,
        "method": "tokenize",
        "params": {"model": "m", "text": "a\nb"},
    }


def test_a_request_without_params_sends_an_empty_object() -> None:
    _, line = Exchange().request("server/info", None)
    assert msgspec.json.decode(line)["params"] == {}


def test_a_cancel_is_a_notification_that_names_the_request() -> None:
    sent = msgspec.json.decode(Exchange().cancel(7))
    assert sent == {"jsonrpc": "2.0", "method": "$/cancelRequest", "params": {"id": 7}}


MESSAGES = [
    (encode_result(1, {"tokens": [1]}), Response(1, b'{"tokens":[1]}', None)),
    (
        encode_notification("stream/delta", StreamDelta(id=1, index=0, text="é\n")),
        StreamDelta(id=1, index=0, text="é\n"),
    ),
    (encode_notification("$/progress", Progress(token=1, value={"a": 1})), Progress(token=1, value={"a": 1})),
    (
        encode_notification("event", Event(topic="t", model="m", what="w", detail={})),
        Event(topic="t", model="m", what="w", detail={}),
    ),
]


@given(st.lists(st.sampled_from(MESSAGES), max_size=5), st.lists(st.integers(0, 500), max_size=8))
def test_messages_are_read_in_order_however_the_stream_is_cut(
    messages: list[tuple[bytes, Any]], places: list[int]
) -> None:
    stream = b"".join(frame + b"\n" for frame, _ in messages)
    chunks = cut(stream, [min(place, len(stream)) for place in places])
    assert read_all(Exchange(), chunks) == [message for _, message in messages]


@pytest.mark.parametrize(
    "frame",
    [
        b"not json",
        b"[]",
        b'{"jsonrpc": "2.0", "method": "stream/delta", "params": {"id": 1}}',
        b'{"jsonrpc": "2.0", "method": "stream/delta"}',
        b"\xff",
    ],
)
def test_a_server_that_speaks_something_else_is_a_lost_connection(frame: bytes) -> None:
    with pytest.raises(ConnectionLostError, match="does not speak this protocol"):
        Exchange().read(frame + b"\n")


def test_a_server_that_sends_without_end_is_a_lost_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "FRAME_BYTES_MAX", 1000)
    reading = Exchange()
    assert reading.read(b"x" * 1000) == []
    with pytest.raises(ConnectionLostError, match="beyond all bounds"):
        reading.read(b"x")


def test_a_result_is_read_as_its_methods_type() -> None:
    (response,) = Exchange().read(encode_result(1, {"tokens": [1, 2]}) + b"\n")
    assert isinstance(response, Response)
    assert read_result("tokenize", response) == TokenizeResult(tokens=[1, 2])


def test_an_error_is_raised_as_it_was_sent() -> None:
    error = RpcError(ErrorKind.OVERLOADED, "full", retry_after_ms=5)
    (response,) = Exchange().read(encode_error(1, error) + b"\n")
    assert isinstance(response, Response)
    with pytest.raises(RpcError, match="full") as caught:
        read_result("tokenize", response)
    assert caught.value.data == error.data


def test_a_notification_of_a_later_protocol_is_passed_over() -> None:
    frames = b'{"jsonrpc":"2.0","method":"unheard/of"}\n{"jsonrpc":"2.0","id":1,"result":{}}\n'

    (message,) = Exchange().read(frames)
    assert isinstance(message, Response)
