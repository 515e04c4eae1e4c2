"""What waits to be sent to one client. Pure.

Frames leave in the order in which they were put. A delta of a request that already has one waiting is merged
into that: a client that reads slowly gets larger deltas, not more of them, and never holds up anybody else.
"""

from collections import deque

import msgspec

from mlxsup.protocol.generation import StreamDelta
from mlxsup.protocol.jsonrpc import Id, encode_notification
from mlxsup.protocol.methods import DELTA

# JSON around a delta's text, roughly; what counts is that an empty delta is not free.
_DELTA_OVERHEAD_BYTES = 100


class _Delta(msgspec.Struct):
    """The text is one buffer: a string of its own for each token would take many times what is counted."""

    id: Id
    utf8: bytearray = msgspec.field(default_factory=bytearray)

    @property
    def bytes_held(self) -> int:
        return _DELTA_OVERHEAD_BYTES + len(self.utf8)


class ClientOutbox:
    """`bytes_held` is about what the frames waiting here take; the owner compares it with its bound."""

    def __init__(self) -> None:
        self._items: deque[bytes | _Delta] = deque()
        self._mergeable: dict[Id, _Delta] = {}
        self.bytes_held = 0

    def __bool__(self) -> bool:
        return bool(self._items)

    def put(self, frame: bytes) -> None:
        self._items.append(frame)
        self.bytes_held += len(frame)

    def put_delta(self, id: Id, text: str) -> None:
        delta = self._mergeable.get(id)
        if delta is None:
            delta = self._mergeable[id] = _Delta(id)
            self._items.append(delta)
            self.bytes_held += delta.bytes_held
        piece = text.encode()
        delta.utf8 += piece
        self.bytes_held += len(piece)

    def end(self, id: Id) -> None:
        """Request `id` is answered: a delta under this id belongs to another one, and joins nothing that waits."""
        self._mergeable.pop(id, None)

    def put_response(self, id: Id, frame: bytes) -> None:
        self.end(id)
        self.put(frame)

    def take(self, bytes_max: int) -> list[bytes]:
        """The next payloads, in order: at least one if any waits, and then up to about `bytes_max`."""
        payloads: list[bytes] = []
        taken = 0
        while self._items and (not payloads or taken < bytes_max):
            item = self._items.popleft()
            if isinstance(item, bytes):
                payload = item
                self.bytes_held -= len(payload)
            else:
                payload = self._encode(item)
            payloads.append(payload)
            taken += len(payload)
        return payloads

    def _encode(self, delta: _Delta) -> bytes:
        if self._mergeable.get(delta.id) is delta:
            del self._mergeable[delta.id]
        self.bytes_held -= delta.bytes_held
        return encode_notification(DELTA, StreamDelta(id=delta.id, index=0, text=delta.utf8.decode()))
