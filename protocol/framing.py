"""Framings: how one JSON text after another is cut out of a stream of bytes. Pure.

Two are spoken. *Lines*: each frame ends with a newline; after anything bad the decoder is in step again
at the next newline. *Headers*: the Language Server Protocol's `Content-Length: N`, a blank line, N bytes;
a length that can't be read leaves no way to find the next frame, so it ends the connection.

A decoder never holds more than one frame of the allowed size plus the chunk just fed.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import msgspec


class Frame(msgspec.Struct, frozen=True):
    """One complete JSON text, without its delimiter."""

    data: bytes


class Oversize(msgspec.Struct, frozen=True):
    """A frame over the limit; its bytes are thrown away and decoding goes on behind it."""

    frame_bytes_max: int


class BadHeader(msgspec.Struct, frozen=True):
    """The stream can't be cut any further."""

    reason: str


Event = Frame | Oversize | BadHeader


class Decoder(Protocol):
    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Take bytes, yield what they complete. The iterator must be exhausted before the next call."""
        ...

    def finish(self) -> Iterator[Event]:
        """The stream has ended; yield what its end completes."""
        ...


class LineDecoder:
    """Frames end with a newline, the last one also with the end of the stream. Blank lines are skipped."""

    def __init__(self, frame_bytes_max: int) -> None:
        self._frame_bytes_max = frame_bytes_max
        self._buffer = bytearray()
        self._skipping = False

    def feed(self, chunk: bytes) -> Iterator[Event]:
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            yield from self._end_of_line(chunk, start, end)
            start = end + 1
        yield from self._hold(chunk[start:] if start else chunk)

    def finish(self) -> Iterator[Event]:
        yield from self._end_of_line(b"", 0, 0)

    def _end_of_line(self, chunk: bytes, start: int, end: int) -> Iterator[Event]:
        if self._skipping:
            self._skipping = False
            return
        if len(self._buffer) + end - start > self._frame_bytes_max:
            self._buffer.clear()
            yield Oversize(self._frame_bytes_max)
            return
        line = chunk[start:end]
        if self._buffer:
            line = b"".join((self._buffer, line))
            self._buffer.clear()
        if line and not line.isspace():
            yield Frame(line)

    def _hold(self, rest: bytes) -> Iterator[Event]:
        if self._skipping:
            return
        if len(self._buffer) + len(rest) > self._frame_bytes_max:
            self._buffer.clear()
            self._skipping = True
            yield Oversize(self._frame_bytes_max)
            return
        self._buffer += rest


HEADER_BYTES_MAX = 8 * 1024
_LENGTH_DIGITS_MAX = 15
_HEADER_START = b"content-length:"


class HeaderDecoder:
    """`Content-Length: N`, other headers allowed and ignored, a blank line, N bytes."""

    def __init__(self, frame_bytes_max: int) -> None:
        self._frame_bytes_max = frame_bytes_max
        self._buffer = bytearray()
        self._body_bytes: int | None = None
        self._skip_bytes = 0
        self._broken = False

    def feed(self, chunk: bytes) -> Iterator[Event]:
        if self._broken:
            return
        if self._skip_bytes:
            skipped = min(self._skip_bytes, len(chunk))
            self._skip_bytes -= skipped
            chunk = chunk[skipped:]
        self._buffer += chunk
        while not self._broken and (event := self._next()) is not None:
            yield event

    def finish(self) -> Iterator[Event]:
        if not self._broken and (self._buffer or self._body_bytes is not None or self._skip_bytes):
            yield self._break("the stream ended in the middle of a frame")

    def _next(self) -> Event | None:
        if self._body_bytes is None:
            event = self._read_header()
            if event is not None or self._body_bytes is None:
                return event
        if len(self._buffer) < self._body_bytes:
            return None
        with memoryview(self._buffer) as held, held[: self._body_bytes] as body:
            frame = Frame(bytes(body))
        del self._buffer[: self._body_bytes]
        self._body_bytes = None
        return frame

    def _read_header(self) -> Event | None:
        end = self._buffer.find(b"\r\n\r\n", 0, HEADER_BYTES_MAX + 4)
        if end < 0:
            if len(self._buffer) >= HEADER_BYTES_MAX + 4:
                return self._break(f"a header section is limited to {HEADER_BYTES_MAX} bytes")
            return None
        try:
            length = _content_length(bytes(self._buffer[:end]))
        except ValueError as error:
            return self._break(str(error))
        del self._buffer[: end + 4]
        if length <= self._frame_bytes_max:
            self._body_bytes = length
            return None
        held = min(length, len(self._buffer))
        del self._buffer[:held]
        self._skip_bytes = length - held
        return Oversize(self._frame_bytes_max)

    def _break(self, reason: str) -> BadHeader:
        self._broken = True
        self._buffer.clear()
        return BadHeader(reason)


def _content_length(header: bytes) -> int:
    """The length that a header section declares; ValueError says what is wrong with it."""
    length: int | None = None
    for line in header.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        if not colon:
            raise ValueError("every header line needs a colon")
        if name.strip().lower() != b"content-length":
            continue
        digits = value.strip()
        if length is not None:
            raise ValueError("Content-Length is given twice")
        # str.isdigit would let non-ASCII digits through.
        if not digits.isdigit() or len(digits) > _LENGTH_DIGITS_MAX:
            raise ValueError("Content-Length must be a plain decimal number of bytes")
        length = int(digits)
    if length is None:
        raise ValueError("the header Content-Length is missing")
    return length


class Framing(msgspec.Struct, frozen=True):
    """A framing as a value: its name, how to cut and how to wrap, many payloads at once."""

    name: str
    make_decoder: Callable[[int], Decoder]
    encode_all: Callable[[Sequence[bytes]], bytes]

    def encode(self, payload: bytes) -> bytes:
        return self.encode_all((payload,))


_UNICODE_LINE_ENDS = ((b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"))


def _encode_lines(payloads: Sequence[bytes]) -> bytes:
    lines = b"\n".join((*payloads, b""))
    if lines.count(b"\n") != len(payloads):
        raise ValueError("a frame can't contain its own delimiter")
    if not lines.isascii():
        # Node's readline and others end a line at these too; inside JSON strings they may be escaped.
        for character, escape in _UNICODE_LINE_ENDS:
            lines = lines.replace(character, escape)
    return lines


def _encode_headers(payloads: Sequence[bytes]) -> bytes:
    return b"".join(b"Content-Length: %d\r\n\r\n%b" % (len(payload), payload) for payload in payloads)


LINES = Framing("lines", LineDecoder, _encode_lines)
HEADERS = Framing("headers", HeaderDecoder, _encode_headers)


def detect(start: bytes) -> Framing | None:
    """The framing of a connection by its first bytes; None while they are too few to tell."""
    head = start[: len(_HEADER_START)].lower()
    if not _HEADER_START.startswith(head):
        return LINES
    return HEADERS if len(head) == len(_HEADER_START) else None


class DetectingDecoder:
    """Decodes with the framing that the peer's first bytes choose; `framing` is LINES until they have."""

    def __init__(self, frame_bytes_max: int) -> None:
        self._frame_bytes_max = frame_bytes_max
        self._start = b""
        self._decoder: Decoder | None = None
        self.framing = LINES

    def feed(self, chunk: bytes) -> Iterator[Event]:
        decoder = self._decoder
        if decoder is None:
            self._start += chunk
            framing = detect(self._start)
            if framing is None:
                return
            decoder, chunk = self._choose(framing)
        yield from decoder.feed(chunk)

    def finish(self) -> Iterator[Event]:
        decoder = self._decoder
        if decoder is None:
            decoder, start = self._choose(LINES)
            yield from decoder.feed(start)
        yield from decoder.finish()

    def _choose(self, framing: Framing) -> tuple[Decoder, bytes]:
        self.framing = framing
        self._decoder = framing.make_decoder(self._frame_bytes_max)
        start, self._start = self._start, b""
        return self._decoder, start
