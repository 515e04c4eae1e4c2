import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxsup.protocol.framing import (
    HEADER_BYTES_MAX,
    HEADERS,
    BadHeader,
    Event,
    Frame,
    HeaderDecoder,
    Oversize,
)
from tests.unit.protocol.cutting import chunkings, cut, decode, every_byte

MIB = 1024 * 1024
LIMIT = 20


@st.composite
def frames(draw: st.DrawFn) -> tuple[bytes, Event]:
    """One framed body, and what it decodes to."""
    body = draw(st.binary(max_size=30))
    name = draw(st.sampled_from([b"Content-Length", b"content-length", b"CONTENT-LENGTH"]))
    space = draw(st.sampled_from([b"", b" ", b"  "]))
    length = name + b":" + space + b"%d" % len(body)
    others = draw(
        st.lists(
            st.sampled_from([b"Content-Type: x; charset=utf-8", b"X: ", b"Content-Length-2: 9"]), max_size=2
        )
    )
    place = draw(st.integers(0, len(others)))
    header = b"\r\n".join([*others[:place], length, *others[place:]])
    event: Event = Frame(body) if len(body) <= LIMIT else Oversize(LIMIT)
    return header + b"\r\n\r\n" + body, event


broken_ends = st.sampled_from(
    [
        b"\r\n\r\n",
        b"Content-Length: -1\r\n\r\n",
        b"Content-Length: 1e3\r\n\r\n",
        b"no colon\r\n\r\n{}",
        b"Content-Length: 4",
        b"Content-Length: 4\r\n\r\n{",
        b"X: " + b"y" * HEADER_BYTES_MAX,
    ]
)


@given(st.lists(frames(), max_size=4), st.data())
def test_bodies_come_out_the_same_however_the_stream_is_cut(
    parts: list[tuple[bytes, Event]], data: st.DataObject
) -> None:
    stream = b"".join(part for part, _ in parts)
    chunks = data.draw(
        st.lists(st.integers(0, len(stream)), max_size=12).map(lambda places: cut(stream, places))
    )
    expected = [event for _, event in parts]
    assert decode(HeaderDecoder(LIMIT), chunks) == expected
    assert decode(HeaderDecoder(LIMIT), every_byte(stream)) == expected


@given(chunkings(st.lists(frames().map(lambda part: part[0]) | broken_ends, max_size=4).map(b"".join)))
def test_a_broken_stream_breaks_at_the_same_place_however_it_is_cut(
    cut_stream: tuple[bytes, list[bytes]],
) -> None:
    stream, chunks = cut_stream
    assert decode(HeaderDecoder(LIMIT), chunks) == decode(HeaderDecoder(LIMIT), [stream])


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"", "colon"),
        (b"Content-Length", "colon"),
        (b"Content-Type: x", "missing"),
        (b"Content-Length:", "decimal"),
        (b"Content-Length: -1", "decimal"),
        (b"Content-Length: +1", "decimal"),
        (b"Content-Length: 0x10", "decimal"),
        (b"Content-Length: 1.0", "decimal"),
        (b"Content-Length: 1 2", "decimal"),
        (b"Content-Length: 2\nX: 1", "decimal"),
        ("Content-Length: ٤".encode(), "decimal"),
        (b"Content-Length: " + b"9" * 400, "decimal"),
        (b"Content-Length: 1\r\nContent-Length: 1", "twice"),
    ],
)
def test_a_length_that_cannot_be_read_ends_the_decoding_with_its_reason(header: bytes, reason: str) -> None:
    decoder = HeaderDecoder(LIMIT)
    (event,) = decoder.feed(header + b"\r\n\r\n{}")
    assert isinstance(event, BadHeader)
    assert reason in event.reason
    assert list(decoder.feed(b"Content-Length: 2\r\n\r\n{}")) == []
    assert list(decoder.finish()) == []


@pytest.mark.parametrize(("extra_bytes", "is_read"), [(-1, True), (0, True), (1, False), (4, False)])
def test_a_header_section_is_bounded_to_the_byte_however_it_is_cut(extra_bytes: int, is_read: bool) -> None:
    length = b"Content-Length: 2\r\nX: "
    section = length + b"y" * (HEADER_BYTES_MAX - len(length) + extra_bytes)
    stream = section + b"\r\n\r\n{}"
    for chunks in (
        [stream],
        every_byte(stream),
        cut(stream, [len(section)]),
        cut(stream, [len(section) + 3]),
    ):
        (event,) = decode(HeaderDecoder(LIMIT), chunks)
        assert isinstance(event, Frame) == is_read


def test_a_body_of_exactly_the_limit_is_a_frame() -> None:
    assert decode(HeaderDecoder(2), [HEADERS.encode(b"{}")]) == [Frame(b"{}")]


def test_an_oversize_body_is_told_before_it_has_come_and_thrown_away() -> None:
    decoder = HeaderDecoder(LIMIT)
    assert list(decoder.feed(b"Content-Length: 1000\r\n\r\n")) == [Oversize(LIMIT)]
    assert list(decoder.feed(b"x" * 999)) == []
    assert list(decoder.feed(b"x" + HEADERS.encode(b"{}"))) == [Frame(b"{}")]


@pytest.mark.parametrize(
    "stream",
    [
        b"Content-L",
        b"Content-Length: 3\r\n\r\n",
        b"Content-Length: 3\r\n\r\n{}",
        b"Content-Length: 99\r\n\r\n{",
    ],
)
def test_a_stream_that_ends_within_a_frame_says_so(stream: bytes) -> None:
    last = decode(HeaderDecoder(LIMIT), [stream])[-1]
    assert last == BadHeader("the stream ended in the middle of a frame")


@given(st.binary(max_size=LIMIT))
def test_what_is_encoded_is_decoded_again(payload: bytes) -> None:
    assert decode(HeaderDecoder(LIMIT), [HEADERS.encode(payload) * 2]) == [Frame(payload)] * 2


@pytest.mark.parametrize("start", [b"Content-Length: 200000000\r\n\r\n", b"X: "], ids=["a body", "a header"])
def test_bytes_without_end_take_no_more_memory_than_one_frame(start: bytes) -> None:
    decoder = HeaderDecoder(MIB)
    chunk = b"x" * 65536
    tracemalloc.start()
    try:
        list(decoder.feed(start))
        for _ in range(190 * MIB // len(chunk)):
            list(decoder.feed(chunk))
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 16 * 1024
    assert peak < 256 * 1024


def test_a_body_that_comes_slowly_takes_no_more_memory_than_one_frame() -> None:
    decoder = HeaderDecoder(MIB)
    chunk = b"x" * 1024
    tracemalloc.start()
    try:
        for _ in range(8):
            list(decoder.feed(b"Content-Length: %d\r\n\r\n" % MIB))
            assert [len(list(decoder.feed(chunk))) for _ in range(MIB // len(chunk))] == [0] * 1023 + [1]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2.5 * MIB
