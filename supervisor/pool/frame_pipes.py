"""Frames over a worker's stdin and stdout, one a line.

Whoever sends only appends to a buffer: a frame is never torn by a cancelled sender.
"""

from collections.abc import Callable
from contextlib import suppress

import trio

from mlxsup.protocol import worker_link as link
from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.framing import Frame, LineDecoder

READ_BYTES = 256 * 1024
PIPE_CLOSED = (trio.BrokenResourceError, trio.ClosedResourceError)


class LinkFaultError(Exception):
    """The worker sent what is not the worker protocol."""


class FrameWriter:
    def __init__(self, stdin: trio.abc.SendStream) -> None:
        self._stdin = stdin
        self._buffer = bytearray()
        self._wake = trio.Event()
        self._closing = False

    def put(self, frame: bytes) -> None:
        """Nothing is sent any more behind `close`.

        Raises:
            RpcError: LIMIT_EXCEEDED for what the worker would take for a broken protocol.
        """
        if len(frame) > link.FRAME_BYTES_MAX:
            raise RpcError(
                ErrorKind.LIMIT_EXCEEDED,
                "the request is too large to be handed to a worker; send less at once",
            )
        if self._closing:
            return
        self._buffer += frame
        self._buffer += b"\n"
        self._wake.set()

    def close(self) -> None:
        """End the worker's input, behind what was put before."""
        self._closing = True
        self._wake.set()

    async def run(self) -> None:
        """Until `close`. Raises one of PIPE_CLOSED when the worker reads no more."""
        try:
            while self._buffer or not self._closing:
                if not self._buffer:
                    await self._wake.wait()
                self._wake = trio.Event()
                data, self._buffer = self._buffer, bytearray()
                if data:
                    await self._stdin.send_all(data)
        finally:
            self._closing = True
            await trio.aclose_forcefully(self._stdin)


async def read_frames(stdout: trio.abc.ReceiveStream, take: Callable[[bytes], None]) -> None:
    """Hand each frame to `take`, until the worker closes its output.

    Raises:
        LinkFaultError: a frame over the limit, or from `take`.
    """
    decoder = LineDecoder(link.FRAME_BYTES_MAX)
    with suppress(*PIPE_CLOSED):
        while chunk := await stdout.receive_some(READ_BYTES):
            for event in decoder.feed(bytes(chunk)):
                if not isinstance(event, Frame):
                    raise LinkFaultError("a frame over the limit")
                take(event.data)
