from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.jsonrpc import (
    Call,
    Response,
    encode_batch,
    encode_error,
    encode_notification,
    encode_request,
    encode_result,
    parse_message,
)

ids = st.none() | st.integers(-(2**53), 2**53) | st.text()
results = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text() | st.lists(st.integers(0, 9))


def as_json(frame: bytes) -> Any:
    return msgspec.json.decode(frame)


@given(ids, results)
def test_a_result_is_read_as_it_was_written(id: int | str | None, result: Any) -> None:
    frame = encode_result(id, result)
    assert as_json(frame) == {"jsonrpc": "2.0", "id": id, "result": result}
    message = parse_message(frame)
    assert isinstance(message, Response)
    assert (message.id, message.error) == (id, None)
    assert message.result is not None
    assert as_json(message.result) == result


@given(ids, st.sampled_from(ErrorKind), st.text())
def test_an_error_is_read_as_it_was_written_and_has_no_result(
    id: int | str | None, kind: ErrorKind, text: str
) -> None:
    error = RpcError(kind, text)
    frame = encode_error(id, error)
    assert set(as_json(frame)) == {"jsonrpc", "id", "error"}
    assert parse_message(frame) == Response(id, None, error.to_object())


@given(ids)
def test_a_request_and_a_notification_are_told_apart_by_the_id_alone(id: int | str | None) -> None:
    assert parse_message(encode_request(id, "m", [1])) == Call("m", b"[1]", id)
    assert parse_message(encode_notification("m", [1])) == Call("m", b"[1]", msgspec.UNSET)
    assert "id" not in as_json(encode_notification("m", {}))


@given(st.text(), st.text())
def test_no_text_brings_a_newline_into_a_frame(method: str, text: str) -> None:
    for frame in (
        encode_request(text, method, {"text": text}),
        encode_notification(method, text),
        encode_error(text, RpcError(ErrorKind.INTERNAL, text)),
    ):
        assert b"\n" not in frame
        assert b"\r" not in frame


def test_a_batch_of_answers_is_one_array_of_them() -> None:
    answers = [encode_result(1, 2), encode_result("a", None)]
    assert as_json(encode_batch(answers)) == [as_json(answer) for answer in answers]


ERROR = '{"code": -32603, "message": "x", "data": {"kind": "internal", "retriable": false}}'


@pytest.mark.parametrize(
    "frame",
    [
        "{}",
        "[]",
        "1",
        '{"id": 1}',
        '{"result": 1}',
        f'{{"id": 1, "result": 1, "error": {ERROR}}}',
        '{"id": 1.5, "result": 1}',
        '{"id": 1, "error": {"code": 1}}',
        '{"id": 1, "error": "x"}',
        '{"method": 1}',
        "not json",
        "",
        "[" * 5000,
        '{"id": 1, "result": ' + "[" * 5000 + "]" * 5000 + "}",
    ],
    ids=lambda frame: frame[:40],
)
def test_what_is_neither_a_call_nor_a_response_is_a_value_error(frame: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        parse_message(frame.encode())


def test_bad_utf8_from_a_peer_is_a_value_error_also_where_nobody_reads_it() -> None:
    with pytest.raises(ValueError, match="not UTF-8"):
        parse_message(b'{"method": "m", "unknown": "\xff"}')


def test_a_null_result_is_a_result() -> None:
    assert parse_message(b'{"id": 1, "result": null}') == Response(1, b"null", None)


def test_a_null_error_beside_a_result_is_no_error() -> None:
    assert parse_message(b'{"id": 1, "result": 1, "error": null}') == Response(1, b"1", None)
