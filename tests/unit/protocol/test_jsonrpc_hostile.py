"""Frames that are not JSON, or JSON made to hurt: each is refused in words that give nothing back."""

import sys
import time
import tracemalloc

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxsup.protocol.errors import ErrorKind
from mlxsup.protocol.jsonrpc import UNDECODABLE, Batch, Call, Invalid, parse_calls
from mlxsup.protocol.structure import CONTAINERS_MAX, DEPTH_MAX, VALUES_MAX

MIB = 1024 * 1024
REQUEST = b'{"jsonrpc": "2.0", "method": "m", "id": 1, "params": %b}'


def refused(frame: bytes) -> Invalid:
    parsed = parse_calls(frame, 100)
    assert isinstance(parsed, Invalid)
    assert parsed.id is None
    return parsed


@pytest.mark.parametrize(
    "params",
    [
        b"[NaN]",
        b"[Infinity]",
        b"[-Infinity]",
        b"[01]",
        b"[1,]",
        b'{"a":1,}',
        b"[.5]",
        b"[1.]",
        b"[+1]",
        b"{a:1}",
        b"['a']",
        b"[1 // one\n]",
        b'["\t"]',
        b'["\\x41"]',
        b'["\\ud800"]',
        b'["\\udc00"]',
        b'["\\ud800\\u0041"]',
        b"[1] [2]",
        b"[tru]",
        b"{]",
    ],
    ids=ascii,
)
def test_what_json_does_not_know_is_a_parse_error_also_in_a_batch(params: bytes) -> None:
    frame = REQUEST % params
    assert refused(frame).error.kind is ErrorKind.PARSE_ERROR
    assert refused(b"[" + frame + b"]").error.kind is ErrorKind.PARSE_ERROR


@pytest.mark.parametrize("member", [b"method", b"id", b"params", b"unknown"])
@pytest.mark.parametrize(
    "bad",
    [b"\xff", b"\xc3", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"],
    ids=["never a byte", "cut off", "overlong", "surrogate", "beyond unicode", "cut off in three"],
)
def test_bad_utf8_is_a_parse_error_in_every_member_also_in_one_nobody_reads(
    member: bytes, bad: bytes
) -> None:
    frame = b'{"jsonrpc": "2.0", "method": "m", "id": 1, "' + member + b'": ["' + bad + b'"]}'
    error = refused(frame).error
    assert error.kind is ErrorKind.PARSE_ERROR
    assert error.data.detail == f"not UTF-8 (byte {frame.index(bad)})"


def test_a_byte_order_mark_is_a_parse_error() -> None:
    assert refused(b"\xef\xbb\xbf" + REQUEST % b"[]").error.kind is ErrorKind.PARSE_ERROR


def test_what_no_other_encoding_of_unicode_reads_as_json_is_a_parse_error() -> None:
    text = (REQUEST % b"[]").decode()
    for encoding in ("utf-16-le", "utf-16-be", "utf-32-le"):
        assert refused(text.encode(encoding)).error.kind is ErrorKind.PARSE_ERROR


@pytest.mark.parametrize("frame", [b"", b"{", b"[", b'"', b'{"jsonrpc"', b'{"jsonrpc": "2.0", "method": "m"'])
def test_a_frame_that_stops_short_is_a_parse_error(frame: bytes) -> None:
    assert refused(frame).error.kind is ErrorKind.PARSE_ERROR


def test_text_behind_a_wrong_type_must_still_be_json() -> None:
    assert (
        refused(b'{"jsonrpc": 2, "method": "foobar, "params": "bar", "baz]').error.kind
        is ErrorKind.PARSE_ERROR
    )


def test_text_behind_two_wrong_types_must_still_be_json() -> None:
    assert refused(b'{"jsonrpc": 2, "id": [], "params": [1').error.kind is ErrorKind.PARSE_ERROR


def nested(depth: int) -> bytes:
    """`depth` levels in all, the request's own included."""
    inside = depth - 1
    return REQUEST % (b'{"a":[' * (inside // 2) + b"[]" * (inside % 2) + b"]}" * (inside // 2))


def test_nesting_is_allowed_to_its_limit_and_not_one_level_beyond() -> None:
    assert isinstance(parse_calls(nested(DEPTH_MAX), 100), Call)
    error = refused(nested(DEPTH_MAX + 1)).error
    assert error.kind is ErrorKind.PARSE_ERROR
    assert "nested too deeply" in (error.data.detail or "")


@pytest.mark.parametrize(
    "depth", sorted({200, 900, *range(985, 1005), sys.getrecursionlimit(), 1500, 10_000, 100_000})
)
def test_no_depth_gets_past_the_parser_as_an_exception_on_this_python(depth: int) -> None:
    for frame in (nested(depth), b"[" + nested(depth) + b"]", b"[" * depth, b'{"a":' * depth):
        assert refused(frame).error.kind is ErrorKind.PARSE_ERROR


def test_brackets_in_a_text_are_no_nesting() -> None:
    text = b'"' + b"[{" * 10_000 + b'\\"[\\\\"'
    assert isinstance(parse_calls(REQUEST % (b"[" + text + b"]"), 100), Call)


def test_brackets_behind_a_text_that_ends_in_a_backslash_are_nesting() -> None:
    deep = b"[" * DEPTH_MAX + b"]" * DEPTH_MAX
    assert isinstance(refused(REQUEST % (b'["\\\\",' + deep + b"]")), Invalid)


texts = st.lists(st.sampled_from(["[", "]", "{", "}", '"', "\\", ",", "a", "\n"]), max_size=30).map("".join)


@given(
    st.recursive(texts, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))
)
def test_the_measured_depth_is_that_of_the_value_whatever_its_texts_hold(value: object) -> None:
    def depth(value: object) -> int:
        if isinstance(value, dict):
            return 1 + max(map(depth, value.values()), default=0)
        return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0

    wrapped = DEPTH_MAX - 1 - depth(value)
    text = msgspec.json.encode(value)
    assert isinstance(parse_calls(REQUEST % (b"[" * wrapped + text + b"]" * wrapped), 100), Call)
    assert isinstance(
        parse_calls(REQUEST % (b"[" * (wrapped + 1) + text + b"]" * (wrapped + 1)), 100), Invalid
    )


@pytest.mark.parametrize(("open", "close"), [(b"[", b"]"), (b"{", b"}")])
def test_the_number_of_objects_and_arrays_is_bounded(open: bytes, close: bytes) -> None:
    def with_containers(count: int) -> bytes:
        return REQUEST % (b"[" + b",".join([open + close] * (count - 2)) + b"]")

    assert isinstance(parse_calls(with_containers(CONTAINERS_MAX), 100), Call)
    assert refused(with_containers(CONTAINERS_MAX + 1)).error.kind is ErrorKind.LIMIT_EXCEEDED


def test_a_text_across_many_megabytes_is_still_one_text() -> None:
    text = b'"' + b"[" * 100_000 + b'"'
    deep = b"[" * DEPTH_MAX + b"]" * DEPTH_MAX
    assert isinstance(parse_calls(REQUEST % (b"[" + b",".join([text] * 8) + b"]"), 100), Call)
    assert (
        refused(REQUEST % (b"[" + b",".join([text] * 8) + b"," + deep + b"]")).error.kind
        is ErrorKind.PARSE_ERROR
    )


def test_the_number_of_values_is_bounded_and_commas_in_texts_are_none() -> None:
    def with_commas(count: int) -> bytes:
        return REQUEST % (b"[1" + b",1" * (count - 3) + b"]")

    assert isinstance(parse_calls(with_commas(VALUES_MAX), 100), Call)
    assert refused(with_commas(VALUES_MAX + 1)).error.kind is ErrorKind.LIMIT_EXCEEDED
    assert isinstance(parse_calls(REQUEST % (b'["' + b"," * (VALUES_MAX + 1) + b'"]'), 100), Call)


HOSTILE = {
    "open arrays": b"[" * (8 * MIB),
    "open objects": b'{"a":' * (8 * MIB // 5),
    "many arrays": b"[" + b"[]," * (8 * MIB // 3) + b"[]]",
    "many numbers in a batch": b"[" + b"1," * (4 * MIB - 1) + b"1]",
    "many empty texts": b"[" + b'"",' * (8 * MIB // 3) + b'""]',
    "texts of brackets": b"[" + b'"[",' * (2 * MIB) + b"1]",
    "one text of quotes": REQUEST % (b'["' + b'\\"' * (4 * MIB) + b'"]'),
    "one text of backslashes": REQUEST % (b'["' + b"\\\\" * (4 * MIB) + b'"]'),
    "a long unknown member": b'{"' + b"x" * (8 * MIB) + b'": 1}',
    "a long version": b'{"jsonrpc": "' + b"x" * (8 * MIB) + b'", "method": "m"}',
    "a long number": REQUEST % (b"[" + b"9" * (8 * MIB) + b"]"),
}


@pytest.mark.parametrize("frame", HOSTILE.values(), ids=HOSTILE)
def test_eight_megabytes_made_to_hurt_take_little_time_memory_and_answer(frame: bytes) -> None:
    started_s = time.process_time()
    parsed = parse_calls(frame, 100)
    taken_s = time.process_time() - started_s
    tracemalloc.start()
    try:
        parse_calls(frame, 100)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Bounds far from what is seen, and as far from what such frames can do: seconds, and hundreds of megabytes.
    assert taken_s < 2.0
    assert peak < 96 * MIB
    if isinstance(parsed, Invalid):
        assert len(parsed.error.message) + len(parsed.error.data.detail or "") < 500


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_bytes_get_past_the_parser_as_an_exception(frame: bytes) -> None:
    assert isinstance(parse_calls(frame, 100), Call | Invalid | Batch)


def test_the_decoders_exceptions_are_the_ones_that_are_caught() -> None:
    assert {kind.__name__ for kind in UNDECODABLE} == {"DecodeError", "UnicodeDecodeError", "RecursionError"}
