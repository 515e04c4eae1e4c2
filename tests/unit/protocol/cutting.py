"""Streams of bytes cut into chunks, as a pipe or a socket may deliver them."""

from collections.abc import Iterable

from hypothesis import strategies as st

from mlxsup.protocol.framing import Decoder, Event


def chunkings(streams: st.SearchStrategy[bytes]) -> st.SearchStrategy[tuple[bytes, list[bytes]]]:
    """A stream, and its bytes in chunks of any sizes."""
    return streams.flatmap(
        lambda stream: st.lists(st.integers(0, len(stream)), max_size=12).map(
            lambda places: (stream, cut(stream, places))
        )
    )


def cut(stream: bytes, places: Iterable[int]) -> list[bytes]:
    ends = [*sorted(places), len(stream)]
    return [stream[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def every_byte(stream: bytes) -> list[bytes]:
    return cut(stream, range(1, len(stream)))


def decode(decoder: Decoder, chunks: Iterable[bytes]) -> list[Event]:
    """All the events of a whole stream."""
    events = [event for chunk in chunks for event in decoder.feed(chunk)]
    return events + list(decoder.finish())
