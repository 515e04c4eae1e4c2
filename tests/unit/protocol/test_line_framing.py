import tracemalloc

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxsup.protocol.framing import LINES, Event, Frame, LineDecoder, Oversize
from tests.unit.protocol.cutting import chunkings, decode, every_byte

MIB = 1024 * 1024

# Small alphabets and limits, so that every boundary is met often.
streams = st.lists(st.sampled_from([b"a", b"{}", b" ", b"\t\r", b"\n", b"\n\n", b"12345678", b"\xff"])).map(
    b"".join
)
limits = st.integers(1, 12)


def lines_of(stream: bytes, frame_bytes_max: int) -> list[Event]:
    """What a stream holds, said without any buffering."""
    events: list[Event] = []
    for line in stream.split(b"\n"):
        if len(line) > frame_bytes_max:
            events.append(Oversize(frame_bytes_max))
        elif line.strip():
            events.append(Frame(line))
    return events


@given(chunkings(streams), limits)
def test_lines_come_out_the_same_however_the_stream_is_cut(
    cut_stream: tuple[bytes, list[bytes]], frame_bytes_max: int
) -> None:
    stream, chunks = cut_stream
    assert decode(LineDecoder(frame_bytes_max), chunks) == lines_of(stream, frame_bytes_max)


@given(streams, limits)
def test_lines_come_out_the_same_byte_by_byte(stream: bytes, frame_bytes_max: int) -> None:
    assert decode(LineDecoder(frame_bytes_max), every_byte(stream)) == lines_of(stream, frame_bytes_max)


def test_a_line_of_exactly_the_limit_is_a_frame_and_one_byte_more_is_not() -> None:
    assert decode(LineDecoder(4), [b"1234\n12345\n"]) == [Frame(b"1234"), Oversize(4)]


def test_an_oversize_line_is_told_once_before_it_ends_and_decoding_goes_on_behind_it() -> None:
    decoder = LineDecoder(4)
    assert list(decoder.feed(b"12345")) == [Oversize(4)]
    assert list(decoder.feed(b"6789")) == []
    assert list(decoder.feed(b"0\n[1]\n")) == [Frame(b"[1]")]


def test_a_frame_is_there_as_soon_as_its_newline_is() -> None:
    decoder = LineDecoder(100)
    assert list(decoder.feed(b"[1]")) == []
    assert list(decoder.feed(b"\n")) == [Frame(b"[1]")]


def test_the_last_line_needs_no_newline() -> None:
    assert decode(LineDecoder(100), [b"[1]\n[2]"]) == [Frame(b"[1]"), Frame(b"[2]")]


def test_blank_lines_are_no_frames() -> None:
    assert decode(LineDecoder(100), [b"\n\r\n  \t\n[1]\r\n\n"]) == [Frame(b"[1]\r")]


def test_garbage_is_a_frame_like_any_other() -> None:
    assert decode(LineDecoder(100), [b"\x00\xff garbage\n[1]\n"]) == [
        Frame(b"\x00\xff garbage"),
        Frame(b"[1]"),
    ]


@given(st.text(max_size=20))
def test_what_is_encoded_is_decoded_again(text: str) -> None:
    frame, again = decode(LineDecoder(500), [LINES.encode(msgspec.json.encode(text)) * 2])

    assert isinstance(frame, Frame)
    assert again == frame
    assert msgspec.json.decode(frame.data) == text


@pytest.mark.parametrize("line_end", ["\u2028", "\u2029"])
def test_characters_that_other_readers_take_for_line_ends_leave_escaped(line_end: str) -> None:
    line = LINES.encode(msgspec.json.encode(f"a{line_end}b"))

    assert line_end not in line.decode()
    assert msgspec.json.decode(line) == f"a{line_end}b"


def test_a_payload_with_a_newline_is_refused_rather_than_torn() -> None:
    with pytest.raises(ValueError, match="delimiter"):
        LINES.encode(b"[1,\n2]")


def test_a_line_that_never_ends_takes_no_more_memory_than_one_frame() -> None:
    decoder = LineDecoder(MIB)
    chunk = b"x" * 65536
    tracemalloc.start()
    try:
        for _ in range(200 * MIB // len(chunk)):
            list(decoder.feed(chunk))
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 64 * 1024
    assert peak < MIB + 512 * 1024


def test_a_long_line_that_comes_slowly_is_held_twice_at_most() -> None:
    decoder = LineDecoder(MIB)
    chunk = b"x" * 1024
    tracemalloc.start()
    try:
        for _ in range(8):
            assert [len(list(decoder.feed(chunk))) for _ in range(MIB // len(chunk))] == [0] * 1024
            assert len(list(decoder.feed(b"\n"))) == 1
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2.5 * MIB
