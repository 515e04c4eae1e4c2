import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlxsup.protocol.framing import (
    HEADERS,
    LINES,
    DetectingDecoder,
    Frame,
    HeaderDecoder,
    LineDecoder,
    detect,
)
from tests.unit.protocol.cutting import chunkings, decode

START = b"content-length:"


@pytest.mark.parametrize("start", [START, START.upper(), START.title(), START + b" 2\r\n\r\n{}"])
def test_a_content_length_in_any_case_chooses_headers(start: bytes) -> None:
    assert detect(start) is HEADERS


@pytest.mark.parametrize("size", range(len(START)))
def test_no_part_of_a_content_length_chooses_anything_yet(size: int) -> None:
    assert detect(START[:size].title()) is None


@pytest.mark.parametrize("size", range(len(START)))
def test_the_first_byte_that_differs_chooses_lines(size: int) -> None:
    assert detect(START[:size] + b"!") is LINES


@pytest.mark.parametrize(
    "start", [b"{", b" Content-Length:", b"\nContent-Length:", b"\xef\xbb\xbfContent-Length:", b"["]
)
def test_anything_else_chooses_lines(start: bytes) -> None:
    assert detect(start) is LINES


streams = st.one_of(
    st.binary(max_size=40),
    st.lists(st.binary(max_size=8).map(HEADERS.encode), max_size=4).map(b"".join),
    st.lists(st.binary(max_size=8).filter(lambda payload: b"\n" not in payload).map(LINES.encode)).map(
        b"".join
    ),
    st.integers(0, len(START)).flatmap(
        lambda size: st.binary(max_size=20).map(lambda rest: START[:size] + rest)
    ),
)


@given(chunkings(streams))
@example((b"Content-Length", [b"Content", b"-Length"]))
def test_a_stream_is_decoded_as_its_start_says_however_it_is_cut(
    cut_stream: tuple[bytes, list[bytes]],
) -> None:
    stream, chunks = cut_stream
    detecting = DetectingDecoder(20)
    framing = detect(stream) or LINES
    alone = HeaderDecoder(20) if framing is HEADERS else LineDecoder(20)
    assert decode(detecting, chunks) == decode(alone, [stream])
    assert detecting.framing is framing


def test_answers_are_framed_as_lines_until_the_client_has_chosen() -> None:
    decoder = DetectingDecoder(100)
    assert decoder.framing is LINES
    for byte in START[:-1]:
        list(decoder.feed(bytes([byte])))
        assert decoder.framing is LINES
    list(decoder.feed(START[-1:]))
    assert decoder.framing is HEADERS


def test_a_connection_that_ends_within_its_first_word_still_gets_it_decoded() -> None:
    assert decode(DetectingDecoder(100), [b"Conte"]) == [Frame(b"Conte")]


def test_a_connection_that_says_nothing_has_no_frames() -> None:
    assert decode(DetectingDecoder(100), []) == []
