"""A client that blocks: one request at a time, over a Unix socket or a child process.

with Client.connect() as client:
    for piece in client.stream("chat", {"model": "smollm2-135m", "messages": [...]}):
        print(piece, end="", flush=True)
"""

import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from mlxsup.protocol.client.exchange import (
    OWN_SUPERVISOR,
    ConnectionLostError,
    Exchange,
    Notification,
    read_result,
)
from mlxsup.protocol.errors import RpcError
from mlxsup.protocol.generation import GenerationResult, StreamDelta
from mlxsup.protocol.jsonrpc import Response
from mlxsup.protocol.service import EmbedResult
from mlxsup.protocol.socket_path import default_socket

_READ_BYTES = 256 * 1024
_CHILD_EXIT_S = 30.0

OnNotification = Callable[[Notification], None]


class Client:
    """Not for several threads at once. Any method raises RpcError as answered, or ConnectionLostError."""

    def __init__(
        self, read: Callable[[], bytes], write: Callable[[bytes], None], close: Callable[[], None]
    ) -> None:
        self._read = read
        self._write = write
        self._close = close
        self._exchange = Exchange()
        self._received: deque[Response | Notification] = deque()

    @classmethod
    def connect(cls, path: Path | str | None = None, timeout_s: float | None = None) -> Self:
        """To the supervisor that listens at `path`, by default where `mlxsup start` does."""
        where = default_socket(sys.platform, os.environ, Path.home()) if path is None else path
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(where))
        except OSError as error:
            connection.close()
            raise ConnectionLostError(
                f"cannot connect to a supervisor at {where}: {error.strerror}"
            ) from error
        return cls(lambda: connection.recv(_READ_BYTES), connection.sendall, connection.close)

    @classmethod
    def spawn(cls, command: Sequence[str] = OWN_SUPERVISOR) -> Self:
        """To a supervisor of one's own, which ends with this client."""
        # In a session of its own: a terminal's Ctrl-C is this program's to handle.
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        assert child.stdin is not None
        assert child.stdout is not None
        stdin, stdout = child.stdin, child.stdout

        def write(data: bytes) -> None:
            stdin.write(data)
            stdin.flush()

        def close() -> None:
            # A request that could not be written is still in its buffer, and closing tries once more.
            with suppress(BrokenPipeError):
                stdin.close()
            stdout.close()
            try:
                child.wait(_CHILD_EXIT_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

        return cls(lambda: os.read(stdout.fileno(), _READ_BYTES), write, close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def call(self, method: str, params: Any = None, on_notification: OnNotification | None = None) -> Any:
        """Send a request and wait for its typed result; meanwhile notifications go to `on_notification`."""
        id = self._send(method, params)
        while True:
            message = self._next_message()
            if isinstance(message, Response):
                if message.id == id:
                    return read_result(method, message)
            elif on_notification is not None:
                on_notification(message)

    def embed(self, model: str, texts: Sequence[str], **params: Any) -> EmbedResult:
        """A vector for each text."""
        result: EmbedResult = self.call("embed", {"model": model, "input": list(texts), **params})
        return result

    def stream(self, method: str, params: Any) -> "TextStream":
        """`chat` or `generate` with `stream`: iterate over the pieces, then look at `result`."""
        asked = params if isinstance(params, dict) else msgspec.to_builtins(params)
        id = self._send(method, {**asked, "stream": True})
        return TextStream(self, method, id)

    def wait_closed(self) -> None:
        """Read until the server closes the connection."""
        with suppress(ConnectionLostError):
            while True:
                self._next_message()

    def _send(self, method: str, params: Any) -> int:
        id, data = self._exchange.request(method, params)
        self._send_bytes(data)
        return id

    def _send_bytes(self, data: bytes) -> None:
        try:
            self._write(data)
        except OSError as error:
            raise ConnectionLostError(f"the server is gone: {error.strerror}") from error

    def _next_message(self) -> Response | Notification:
        while not self._received:
            try:
                chunk = self._read()
            except TimeoutError as error:
                raise ConnectionLostError("the server did not answer in time") from error
            except OSError as error:
                raise ConnectionLostError(f"the server is gone: {error.strerror}") from error
            if not chunk:
                raise ConnectionLostError("the server closed the connection")
            self._received.extend(self._exchange.read(chunk))
        return self._received.popleft()


class TextStream:
    """The text of one request, piece by piece; or with `next_delta` all that comes. `result` is set once the last has come.

    An exception while a piece is awaited, such as Ctrl-C, loses nothing: the iteration goes on where it was.
    """

    def __init__(self, client: Client, method: str, id: int) -> None:
        self._client = client
        self._method = method
        self._id = id
        self.result: GenerationResult | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        while (delta := self.next_delta()) is not None:
            if delta.text:
                return delta.text
        raise StopIteration

    def next_delta(self) -> StreamDelta | None:
        """Text, and what came beside it: reasoning, tool calls, logprobs. None at the end."""
        while self.result is None:
            message = self._client._next_message()  # noqa: SLF001
            if isinstance(message, StreamDelta) and message.id == self._id:
                return message
            if isinstance(message, Response) and message.id == self._id:
                self.result = read_result(self._method, message)
        return None

    def cancel(self) -> None:
        """Ask for the end; the iteration then ends with the text so far in `result`."""
        self._client._send_bytes(self._client._exchange.cancel(self._id))  # noqa: SLF001


__all__ = ["Client", "ConnectionLostError", "RpcError", "TextStream"]
