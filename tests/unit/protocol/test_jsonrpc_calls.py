from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxsup.protocol.errors import ErrorKind
from mlxsup.protocol.jsonrpc import (
    ID_INTEGER_MAX,
    ID_STRING_BYTES_MAX,
    Batch,
    Call,
    Invalid,
    encode_result,
    parse_calls,
)

BATCH_CALLS_MAX = 3


def parse(frame: bytes | str) -> Call | Invalid | Batch:
    return parse_calls(frame.encode() if isinstance(frame, str) else frame, BATCH_CALLS_MAX)


def call_with(**members: Any) -> bytes:
    return msgspec.json.encode({"jsonrpc": "2.0", "method": "m"} | members)


def refusal(frame: bytes | str) -> tuple[Any, ErrorKind, str]:
    """Under which id a frame is refused, why, and in what words."""
    parsed = parse(frame)
    assert isinstance(parsed, Invalid)
    return parsed.id, parsed.error.kind, parsed.error.data.detail or parsed.error.message


ids = st.none() | st.integers(-ID_INTEGER_MAX, ID_INTEGER_MAX) | st.text(max_size=ID_STRING_BYTES_MAX // 4)


@given(ids)
def test_an_id_comes_back_with_its_own_type_and_value(id: int | str | None) -> None:
    parsed = parse(call_with(id=id))
    assert isinstance(parsed, Call)
    assert not parsed.is_notification
    assert not isinstance(parsed.id, msgspec.UnsetType)
    answer = msgspec.json.decode(encode_result(parsed.id, None))
    assert (answer["id"], type(answer["id"])) == (id, type(id))


def test_a_call_without_an_id_is_a_notification_and_one_with_null_is_not() -> None:
    without, with_null = parse(call_with()), parse(call_with(id=None))
    assert isinstance(without, Call)
    assert without.is_notification
    assert isinstance(with_null, Call)
    assert not with_null.is_notification


@pytest.mark.parametrize(
    "id", ["1.0", "1.5", "1e2", "1e999", "true", "false", "[]", "[1]", "{}", "-0.0"], ids=lambda text: text
)
def test_an_id_that_is_no_integer_string_or_null_is_refused_under_null(id: str) -> None:
    answered, kind, words = refusal(f'{{"jsonrpc": "2.0", "method": "m", "id": {id}}}')
    assert (answered, kind) == (None, ErrorKind.INVALID_REQUEST)
    assert "$.id" in words


@pytest.mark.parametrize("sign", ["", "-"])
def test_an_integer_id_beyond_what_a_javascript_client_can_tell_apart_is_refused(sign: str) -> None:
    for digits in (str(ID_INTEGER_MAX + 1), "9" * 20, "9" * 4000, "9" * 5000, "1" + "0" * 100_000):
        answered, kind, words = refusal(f'{{"jsonrpc": "2.0", "method": "m", "id": {sign}{digits}}}')
        assert (answered, kind) == (None, ErrorKind.INVALID_REQUEST)
        assert "$.id" in words


@pytest.mark.parametrize("id", [2**53, "x" * 129, 1.5, [1]], ids=lambda id: str(id)[:20])
def test_an_invalid_request_is_not_answered_under_an_id_that_is_none(id: Any) -> None:
    assert refusal(call_with(jsonrpc="1.0", id=id))[:2] == (None, ErrorKind.INVALID_REQUEST)


def test_a_string_id_is_bounded_in_bytes_not_in_characters() -> None:
    longest = "é" * (ID_STRING_BYTES_MAX // 2)
    assert isinstance(parse(call_with(id=longest)), Call)
    assert refusal(call_with(id=longest + "a"))[:2] == (None, ErrorKind.INVALID_REQUEST)


@pytest.mark.parametrize(
    ("members", "path"),
    [
        ({"jsonrpc": "1.0"}, "$.jsonrpc"),
        ({"jsonrpc": 2.0}, "$.jsonrpc"),
        ({"jsonrpc": None}, "$.jsonrpc"),
        ({"method": 1}, "$.method"),
        ({"method": None}, "$.method"),
        ({"params": None}, "$.params"),
        ({"params": "bar"}, "$.params"),
        ({"params": 1}, "$.params"),
        ({"params": True}, "$.params"),
    ],
    ids=str,
)
def test_a_request_with_a_wrong_member_is_refused_under_its_own_id(
    members: dict[str, Any], path: str
) -> None:
    answered, kind, words = refusal(call_with(**{"id": "mine"} | members))
    assert (answered, kind) == ("mine", ErrorKind.INVALID_REQUEST)
    assert path in words


@pytest.mark.parametrize("missing", ["jsonrpc", "method"])
def test_a_request_without_a_member_is_refused_under_its_own_id(missing: str) -> None:
    members = {"jsonrpc": "2.0", "method": "m", "id": 7}
    del members[missing]
    answered, kind, words = refusal(msgspec.json.encode(members))
    assert (answered, kind) == (7, ErrorKind.INVALID_REQUEST)
    assert missing in words


@pytest.mark.parametrize("frame", ["1", '"x"', "null", "true", "1.5"])
def test_what_is_no_object_is_no_request(frame: str) -> None:
    assert refusal(frame)[:2] == (None, ErrorKind.INVALID_REQUEST)


def test_of_a_duplicate_key_the_last_one_counts() -> None:
    parsed = parse('{"jsonrpc": "2.0", "method": "a", "id": 1, "method": "b", "id": 2}')
    assert parsed == Call("b", None, 2)


def test_a_duplicate_id_is_not_answered_under_one_that_was_overwritten() -> None:
    answered, _, _ = refusal('{"jsonrpc": "1.0", "method": "m", "id": 1, "id": "last"}')
    assert answered == "last"


def test_unknown_members_of_a_request_are_passed_over() -> None:
    assert parse(call_with(id=1, meta={"x": [1]})) == Call("m", None, 1)


def test_params_are_handed_on_as_they_were_written() -> None:
    parsed = parse('{"jsonrpc": "2.0", "method": "m", "params":  { "a" : 1.50 } }')
    assert isinstance(parsed, Call)
    assert parsed.params == b'{ "a" : 1.50 }'


def test_an_empty_batch_is_one_invalid_request() -> None:
    assert refusal(" [ ] ")[:2] == (None, ErrorKind.INVALID_REQUEST)


def test_a_batch_keeps_the_order_of_its_calls_and_refuses_only_the_bad_ones() -> None:
    good = call_with(id=1).decode()
    parsed = parse(f"[{good}, 1, {call_with().decode()}]")
    assert isinstance(parsed, Batch)
    first, bad, notification = parsed.calls
    assert first == Call("m", None, 1)
    assert isinstance(bad, Invalid)
    assert bad.id is None
    assert isinstance(notification, Call)
    assert notification.is_notification


def test_a_batch_within_a_batch_is_an_invalid_call() -> None:
    parsed = parse("[[]]")
    assert isinstance(parsed, Batch)
    assert isinstance(parsed.calls[0], Invalid)


def test_a_batch_over_its_limit_is_refused_as_a_whole() -> None:
    call = call_with(id=1).decode()
    assert isinstance(parse(f"[{','.join([call] * BATCH_CALLS_MAX)}]"), Batch)
    answered, kind, words = refusal(f"[{','.join([call] * (BATCH_CALLS_MAX + 1))}]")
    assert (answered, kind) == (None, ErrorKind.INVALID_REQUEST)
    assert f"limited to {BATCH_CALLS_MAX}" in words


def test_a_batch_with_broken_json_in_it_is_one_parse_error() -> None:
    assert refusal(f"[{call_with(id=1).decode()}, {{]")[:2] == (None, ErrorKind.PARSE_ERROR)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
member_like = st.dictionaries(
    st.sampled_from(["jsonrpc", "method", "params", "id", "x"]),
    st.sampled_from(["2.0", "m"]) | json_values,
    max_size=5,
)


@given(json_values | member_like | st.lists(member_like, max_size=4))
def test_whatever_json_comes_is_a_call_a_batch_or_an_answer_under_an_id_that_came(value: Any) -> None:
    try:
        frame = msgspec.json.encode(value)
    except (OverflowError, UnicodeEncodeError):
        return
    parsed = parse(frame)
    items = parsed.calls if isinstance(parsed, Batch) else (parsed,)
    sent = [
        item.get("id") for item in (value if isinstance(value, list) else [value]) if isinstance(item, dict)
    ]
    for item in items:
        assert isinstance(item, Call) or item.id is None or item.id in sent
