"""What the structure of a client's frame may be, checked before any of it becomes an object. Pure.

Eight megabytes of `[[],[],...` or `[1,1,...` would take hundreds of megabytes as Python objects, whatever their type.
Nesting has a bound of its own, since Python's depends on its version and on the caller's depth: what was just
decoded could not be encoded again.
"""

from itertools import accumulate

from mlxsup.protocol.errors import ErrorKind, ParseError, RpcError

CONTAINERS_MAX = 1 << 18
VALUES_MAX = 1 << 20
DEPTH_MAX = 128

TOO_DEEP = f"nested too deeply: a frame is limited to {DEPTH_MAX} levels of objects and arrays"

_PIECE_BYTES = 64 * 1024
_UNMARKED = bytes(set(range(256)) - set(b'[]{},"'))
# As signed bytes: one level down, or up.
_STEPS = bytes.maketrans(b"[]{}", b"\x01\xff\x01\xff")


def check_structure(frame: bytes) -> None:
    """Raises RpcError LIMIT_EXCEEDED for too many objects, arrays or values, PARSE_ERROR for too deep ones."""
    if frame.count(b"[") + frame.count(b"{") <= DEPTH_MAX and frame.count(b",") <= VALUES_MAX:
        return
    marks = _marks(frame)
    steps = marks.translate(_STEPS, b",")
    _check_count(steps.count(1), CONTAINERS_MAX, "objects and arrays")
    _check_count(marks.count(b","), VALUES_MAX, "commas between values")
    if max(accumulate(memoryview(steps).cast("b")), default=0) > DEPTH_MAX:
        raise ParseError(TOO_DEEP)


def _check_count(count: int, count_max: int, what: str) -> None:
    if count > count_max:
        raise RpcError(
            ErrorKind.LIMIT_EXCEEDED, f"a frame is limited to {count_max} {what}; send less at once"
        )


def _marks(frame: bytes) -> bytes:
    """Brackets and commas outside of strings; of what is no JSON, some. Megabytes take milliseconds."""
    if b"\\" in frame:
        frame = frame.replace(b"\\\\", b"").replace(b'\\"', b"")
    # A pair of neighbouring quotes changes nothing for what follows, and there may be millions.
    marks = frame.translate(None, _UNMARKED).replace(b'""', b"")
    outside = bytearray()
    within = 0
    # In pieces, since each part of a split is an object of its own.
    for start in range(0, len(marks), _PIECE_BYTES):
        parts = marks[start : start + _PIECE_BYTES].split(b'"')
        outside += b"".join(parts[within::2])
        within ^= (len(parts) - 1) & 1
    return bytes(outside)
