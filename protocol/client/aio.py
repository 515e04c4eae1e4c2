"""A client for Trio: any number of requests at a time, over a Unix socket or a child process.

async with connect() as client:
    async with client.stream("chat", {"model": "smollm2-135m", "messages": [...]}) as pieces:
        async for piece in pieces:
            print(piece, end="", flush=True)
"""

import os
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import trio

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
from mlxsup.protocol.service import EmbedResult, Progress
from mlxsup.protocol.socket_path import default_socket

_READ_BYTES = 256 * 1024
_CHILD_EXIT_S = 30.0
_FLUSH_S = 1.0

OnNotification = Callable[[Notification], None]


class _Pending:
    """One request that is not answered yet; what came for it, in order."""

    def __init__(self) -> None:
        self.deltas: deque[StreamDelta] = deque()
        self.response: Response | None = None
        self.changed = trio.Event()

    def note(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


class Client:
    """Made by `connect` and `spawn`. Any method raises RpcError as answered, or ConnectionLostError."""

    def __init__(self, send: trio.abc.SendStream, receive: trio.abc.ReceiveStream) -> None:
        self._send_stream = send
        self._receive_stream = receive
        self._exchange = Exchange()
        self._outgoing = b""
        self._has_outgoing = trio.Event()
        self._sending = False
        self._sent = trio.Event()
        self._pending: dict[int, _Pending] = {}
        self._lost: ConnectionLostError | None = None
        self._listeners: list[OnNotification] = []

    async def call(self, method: str, params: Any = None, on_progress: OnNotification | None = None) -> Any:
        """Send a request and wait for its typed result. Cancelling the call cancels the request."""
        with self._request(method, params) as (id, pending):
            forward = _only_progress_of(id, on_progress)
            if forward is not None:
                self._listeners.append(forward)
            try:
                while pending.response is None:
                    await self._wait(pending)
            finally:
                if forward is not None:
                    self._listeners.remove(forward)
            return read_result(method, pending.response)

    async def embed(self, model: str, texts: Sequence[str], **params: Any) -> EmbedResult:
        """A vector for each text."""
        result: EmbedResult = await self.call("embed", {"model": model, "input": list(texts), **params})
        return result

    @asynccontextmanager
    async def stream(self, method: str, params: Any) -> AsyncIterator["TextStream"]:
        """`chat` or `generate` with `stream`; leaving the block early cancels the request."""
        asked = params if isinstance(params, dict) else msgspec.to_builtins(params)
        with self._request(method, {**asked, "stream": True}) as (id, pending):
            yield TextStream(self, method, id, pending)

    def listen(self, listener: OnNotification) -> None:
        """Call `listener` with each notification from now on; it may not wait."""
        self._listeners.append(listener)

    @contextmanager
    def _request(self, method: str, params: Any) -> Iterator[tuple[int, _Pending]]:
        if self._lost is not None:
            raise self._lost
        id, data = self._exchange.request(method, params)
        pending = self._pending[id] = _Pending()
        self._put(data)
        try:
            yield id, pending
        finally:
            del self._pending[id]
            if pending.response is None:
                self._put(self._exchange.cancel(id))

    def _put(self, data: bytes) -> None:
        """Frames leave whole and in order, whoever is cancelled meanwhile: one task sends them."""
        self._outgoing += data
        self._has_outgoing.set()

    async def _flush(self) -> None:
        while (self._outgoing or self._sending) and self._lost is None:
            self._sent = trio.Event()
            await self._sent.wait()

    async def _send(self) -> None:
        try:
            while True:
                await self._has_outgoing.wait()
                self._has_outgoing = trio.Event()
                data, self._outgoing = self._outgoing, b""
                self._sending = True
                await self._send_stream.send_all(data)
                self._sending = False
                self._sent.set()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._lose(ConnectionLostError("the server is gone"))

    async def _wait(self, pending: _Pending) -> None:
        if self._lost is not None:
            raise self._lost
        await pending.changed.wait()

    async def _receive(self) -> None:
        try:
            while chunk := await self._receive_stream.receive_some(_READ_BYTES):
                for message in self._exchange.read(bytes(chunk)):
                    self._take(message)
            self._lose(ConnectionLostError("the server closed the connection"))
        except ConnectionLostError as lost:
            self._lose(lost)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._lose(ConnectionLostError("the server is gone"))

    def _lose(self, lost: ConnectionLostError) -> None:
        self._lost = self._lost or lost
        self._sent.set()
        for pending in self._pending.values():
            pending.note()

    def _take(self, message: Response | Notification) -> None:
        if isinstance(message, Response):
            pending = self._pending.get(message.id) if isinstance(message.id, int) else None
            if pending is not None:
                pending.response = message
                pending.note()
            return
        if isinstance(message, StreamDelta) and isinstance(message.id, int) and message.id in self._pending:
            pending = self._pending[message.id]
            pending.deltas.append(message)
            pending.note()
        for listener in tuple(self._listeners):
            listener(message)


class TextStream:
    """The text of one request, piece by piece; or with `next_delta` all that comes. `result` is set once the last has come."""

    def __init__(self, client: Client, method: str, id: int, pending: _Pending) -> None:
        self._client = client
        self._method = method
        self._id = id
        self._pending = pending
        self.result: GenerationResult | None = None

    def __aiter__(self) -> "TextStream":
        return self

    async def __anext__(self) -> str:
        deltas = self._pending.deltas
        while await self._has_delta():
            text = "".join(delta.text for delta in deltas)
            deltas.clear()
            if text:
                return text
        raise StopAsyncIteration

    async def next_delta(self) -> StreamDelta | None:
        """Text, and what came beside it: reasoning, tool calls, logprobs. None at the end."""
        return self._pending.deltas.popleft() if await self._has_delta() else None

    async def _has_delta(self) -> bool:
        """Once there is one; False, with the result, once there will be none."""
        pending = self._pending
        while not pending.deltas:
            if pending.response is not None:
                self.result = read_result(self._method, pending.response)
                return False
            await self._client._wait(pending)  # noqa: SLF001
        return True

    def cancel(self) -> None:
        """Ask for the end; the iteration then ends with the text so far in `result`."""
        self._client._put(self._client._exchange.cancel(self._id))  # noqa: SLF001


def _only_progress_of(id: int, listener: OnNotification | None) -> OnNotification | None:
    if listener is None:
        return None

    def forward(notification: Notification) -> None:
        if isinstance(notification, Progress) and notification.token == id:
            listener(notification)

    return forward


@asynccontextmanager
async def connect(path: Path | str | None = None) -> AsyncIterator[Client]:
    """To the supervisor that listens at `path`, by default where `mlxsup start` does."""
    where = default_socket(sys.platform, os.environ, Path.home()) if path is None else path
    try:
        stream = await trio.open_unix_socket(os.fspath(where))
    except OSError as error:
        raise ConnectionLostError(f"cannot connect to a supervisor at {where}: {error.strerror}") from error
    async with stream, _serving(Client(stream, stream)) as client:
        yield client


@asynccontextmanager
async def spawn(command: Sequence[str] = OWN_SUPERVISOR) -> AsyncIterator[Client]:
    """To a supervisor of one's own, which ends with the block."""
    process = await trio.lowlevel.open_process(
        list(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # A terminal's Ctrl-C is this program's to handle.
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    async with AsyncExitStack() as stack:
        stack.push_async_callback(_end, process)
        yield await stack.enter_async_context(_serving(Client(process.stdin, process.stdout)))


@asynccontextmanager
async def _serving(client: Client) -> AsyncIterator[Client]:
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client._receive)  # noqa: SLF001
        nursery.start_soon(client._send)  # noqa: SLF001
        try:
            yield client
        except Exception as error:  # noqa: BLE001  (it goes on below, out of the nursery that would wrap it in a group)
            failure = error
        finally:
            # What is on its way, a cancel above all, still leaves; a server that reads nothing gets a moment.
            with trio.move_on_after(_FLUSH_S, shield=True):
                await client._flush()  # noqa: SLF001
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _end(process: trio.Process) -> None:
    """The end of its input ends the server; a server that does not end is killed."""
    with trio.CancelScope(shield=True):
        assert process.stdin is not None
        assert process.stdout is not None
        await process.stdin.aclose()
        # Nobody reads any more: a server that still answers sees it, and cancels what it computes.
        await process.stdout.aclose()
        with trio.move_on_after(_CHILD_EXIT_S):
            await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()


__all__ = ["Client", "ConnectionLostError", "RpcError", "TextStream", "connect", "spawn"]
