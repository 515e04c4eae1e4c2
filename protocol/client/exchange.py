"""What both clients have in common: how calls are written and what comes back is read. Pure."""

import sys
from typing import Any

import msgspec

from mlxsup.protocol.errors import RpcError
from mlxsup.protocol.framing import LINES, Frame, LineDecoder
from mlxsup.protocol.generation import StreamDelta
from mlxsup.protocol.jsonrpc import Call, Response, encode_notification, encode_request, parse_message
from mlxsup.protocol.methods import CANCEL, DELTA, EVENT, METHODS, PROGRESS
from mlxsup.protocol.service import CancelParams, Event, NoParams, Progress

# A server's frame is as long as the text of one answer; this only bounds what a broken one could do.
FRAME_BYTES_MAX = 1 << 30
# Of this very installation, whether or not its console script is on the PATH.
OWN_SUPERVISOR = (sys.executable, "-P", "-m", "mlxsup.supervisor", "stdio")

Notification = StreamDelta | Progress | Event

_NOTIFICATIONS: dict[str, type[Any]] = {DELTA: StreamDelta, PROGRESS: Progress, EVENT: Event}


class ConnectionLostError(Exception):
    """The server went away before it answered, or never was there."""


class Exchange:
    """One connection's ids, and its frames both ways."""

    def __init__(self) -> None:
        self._decoder = LineDecoder(FRAME_BYTES_MAX)
        self._last_id = 0

    def request(self, method: str, params: Any) -> tuple[int, bytes]:
        """An id, and the bytes to send. `params` is the method's Struct, a dict like it, or None."""
        self._last_id += 1
        frame = encode_request(self._last_id, method, NoParams() if params is None else params)
        return self._last_id, LINES.encode(frame)

    def cancel(self, id: int) -> bytes:
        return LINES.encode(encode_notification(CANCEL, CancelParams(id=id)))

    def read(self, chunk: bytes) -> list[Response | Notification]:
        """What a chunk of bytes completed. Raises ConnectionLostError when it is not this protocol."""
        messages: list[Response | Notification] = []
        for event in self._decoder.feed(chunk):
            if not isinstance(event, Frame):
                raise ConnectionLostError("the server sent a frame beyond all bounds")
            try:
                message = _read_message(event.data)
            except ValueError as error:
                raise ConnectionLostError(f"the server does not speak this protocol: {error}") from None
            if message is not None:
                messages.append(message)
        return messages


def _read_message(frame: bytes) -> Response | Notification | None:
    """None for a notification of a later version of the protocol."""
    message = parse_message(frame)
    if isinstance(message, Call):
        kind = _NOTIFICATIONS.get(message.method)
        if kind is None:
            return None
        notification: Notification = msgspec.json.decode(message.params or b"{}", type=kind)
        return notification
    return message


def read_result(method: str, response: Response) -> Any:
    """The typed result of `method`. Raises RpcError when the response is an error."""
    if response.error is not None:
        raise RpcError.from_object(response.error)
    return msgspec.json.decode(response.result or b"null", type=METHODS[method].result)
