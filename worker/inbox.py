"""The way in: the reader thread turns frames into commands, the MLX thread takes them.

The reader never waits for anybody, so that the end of its input and a cancel are seen at once; the number
of commands is bounded by the supervisor, which sends no more requests than a batch and its queue hold.
"""

import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from mlxsup.protocol import worker_link as link
from mlxsup.protocol.errors import RpcError
from mlxsup.protocol.framing import Frame, LineDecoder
from mlxsup.protocol.jsonrpc import Call, parse_message
from mlxsup.protocol.params import decode_params

_READ_BYTES = 256 * 1024

_PARAMS: dict[str, type[Any]] = {
    link.LOAD: link.Load,
    link.GENERATE: link.Generate,
    link.EMBED: link.Embed,
    link.TOKENIZE: link.Tokenize,
    link.DETOKENIZE: link.Detokenize,
    link.SELF_TEST: link.SelfTest,
    link.CANCEL: link.Cancel,
    link.TUNE: link.Tune,
    link.LEASE_GRANT: link.LeaseTurn,
    link.SHUTDOWN: link.Shutdown,
}


class Command(msgspec.Struct, frozen=True):
    """What the supervisor asked; `id` is 0 for a notification."""

    id: int
    params: Any


class EndOfInput(msgspec.Struct, frozen=True):
    """Nothing more will come. `fault` says why, unless the supervisor just closed the pipe."""

    fault: str | None = None


class Inbox:
    """Commands in the order in which they came. One taker, the MLX thread."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._changed = threading.Condition()

    def put(self, item: Any) -> None:
        with self._changed:
            self._items.append(item)
            self._changed.notify()

    def has_items(self) -> bool:
        return bool(self._items)

    def take(self, *, wait: bool, timeout_s: float | None = None) -> list[Any]:
        """All that is there; with `wait` at least one item, unless none comes within `timeout_s`."""
        if not wait and not self._items:
            return []
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._items, timeout_s)
            items = list(self._items)
            self._items.clear()
            return items


def read_commands(descriptor: int, deliver: Callable[[Command | EndOfInput], None]) -> None:
    """Read until the input ends or is not the worker protocol; `EndOfInput` is delivered last."""
    decoder = LineDecoder(link.FRAME_BYTES_MAX)
    end = EndOfInput()
    try:
        while chunk := os.read(descriptor, _READ_BYTES):
            for event in decoder.feed(chunk):
                if not isinstance(event, Frame):
                    raise ValueError(f"a frame over {link.FRAME_BYTES_MAX} bytes")
                deliver(_command(event.data))
    except (ValueError, RpcError) as error:
        end = EndOfInput(str(error))
    deliver(end)


def _command(frame: bytes) -> Command:
    message = parse_message(frame)
    if not isinstance(message, Call) or message.method not in _PARAMS:
        raise ValueError("not a command of the worker protocol")
    if message.is_notification:
        return Command(0, decode_params(message.params, _PARAMS[message.method]))
    if not isinstance(message.id, int):
        raise ValueError("ids of the worker protocol are integers")
    return Command(message.id, decode_params(message.params, _PARAMS[message.method]))
