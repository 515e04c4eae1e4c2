"""Files that promise far more pixels than they have bytes."""

import base64
import struct
import zlib
from collections.abc import Callable


def uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def png(width: int, height: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pieces = _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + pieces


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png() -> bytes:
    return png(50_000, 50_000, zlib.compress(b"\x00" * 1_000_000, 9))


def _webp() -> bytes:
    """Only its header: the decoder would make room for a gigabyte."""
    canvas = (16382).to_bytes(3, "little") * 2
    body = b"WEBP" + b"VP8X" + (10).to_bytes(4, "little") + b"\x00" * 4 + canvas
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def _gif() -> bytes:
    screen = struct.pack("<HH", 60_000, 60_000) + b"\x80\x00\x00" + b"\x00" * 6
    frame = b"," + struct.pack("<HHHH", 0, 0, 60_000, 60_000) + b"\x00" + b"\x02\x02\x44\x01\x00"
    return b"GIF89a" + screen + frame + b";"


BOMBS: dict[str, Callable[[], bytes]] = {"png": _png, "webp": _webp, "gif": _gif}
