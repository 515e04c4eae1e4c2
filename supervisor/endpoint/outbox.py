"""What waits to be sent to one client. Pure.

Frames leave in the order in which they were put. A delta of a request that already has one waiting is merged
into that: a client that reads slowly gets larger deltas, not more of them, and never holds up anybody else.
"""

from collections import deque

import msgspec

from mlxsup.protocol.jsonrpc import Id, encode_notification
from mlxsup.protocol.methods import DELTA
from mlxsup.supervisor.generation.extras import Extras, JoinedExtras, stream_delta

# JSON around a delta's text, roughly; what counts is that an empty delta is not free.
_DELTA_OVERHEAD_BYTES = 100


class _Delta(msgspec.Struct, gc=False):
    """Most leave with their first piece. What joins it goes into one buffer: a string of its own for each token would take
    many times what is counted.
    """

    id: Id
    text: str
    extras: Extras | None
    bytes_held: int
    joined: bytearray | None = None
    joined_extras: JoinedExtras | None = None

    def join(self, text: str, extras: Extras | None) -> None:
        if self.joined is None:
            self.joined = bytearray(self.text.encode())
        self.joined += text.encode()
        if extras is None:
            return
        if self.joined_extras is None:
            self.joined_extras = JoinedExtras()
            if self.extras is not None:
                self.joined_extras.add(self.extras)
        self.joined_extras.add(extras)

    def encode(self) -> bytes:
        text = self.text if self.joined is None else self.joined.decode()
        extras = self.extras if self.joined_extras is None else self.joined_extras.copy()
        return encode_notification(DELTA, stream_delta(self.id, text, extras))


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

    def put_delta(self, id: Id, text: str, extras: Extras | None) -> None:
        count = len(text) if text.isascii() else len(text.encode())
        if extras is not None:
            count += extras.bytes_held
        delta = self._mergeable.get(id)
        if delta is None:
            count += _DELTA_OVERHEAD_BYTES
            delta = self._mergeable[id] = _Delta(id, text, extras, count)
            self._items.append(delta)
        else:
            delta.join(text, extras)
            delta.bytes_held += count
        self.bytes_held += count

    def end(self, id: Id) -> None:
        """Request `id` is answered: a delta under this id belongs to another one, and joins nothing that waits."""
        self._mergeable.pop(id, None)

    def put_response(self, id: Id, frame: bytes) -> None:
        self.end(id)
        self.put(frame)

    def take(self, bytes_max: int) -> list[bytes]:
        """The next payloads, in order: at least one if any waits, and then up to about `bytes_max`."""
        payloads: list[bytes] = []
        items, mergeable = self._items, self._mergeable
        taken = 0
        while items and (not payloads or taken < bytes_max):
            item = items.popleft()
            if isinstance(item, _Delta):
                if mergeable.get(item.id) is item:
                    del mergeable[item.id]
                self.bytes_held -= item.bytes_held
                payload = item.encode()
            else:
                self.bytes_held -= len(item)
                payload = item
            payloads.append(payload)
            taken += len(payload)
        return payloads
