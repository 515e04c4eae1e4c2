"""`mlxsup stdio --connect`: stdin and stdout joined to the socket of a supervisor that already runs."""

import os
from pathlib import Path

import trio

from mlxsup.protocol.descriptors import Pipes
from mlxsup.supervisor.endpoint.streams import StdioByteStream
from mlxsup.supervisor.endpoint.unix_server import SocketUnusableError

_CHUNK_BYTES = 64 * 1024


async def bridge(pipes: Pipes, path: Path) -> None:
    """Carry bytes both ways until the supervisor closes, which it does once the input has ended and is answered.

    Raises:
        SocketUnusableError: nobody listens there.
    """
    try:
        socket = await trio.open_unix_socket(os.fspath(path))
    except OSError as error:
        raise SocketUnusableError(
            f"cannot connect to a supervisor: {error.strerror}; start one with `mlxsup start`"
        ) from None
    stdio = StdioByteStream(*pipes)
    try:
        async with socket, trio.open_nursery() as nursery:
            nursery.start_soon(_carry_input, stdio, socket)
            try:
                while chunk := await socket.receive_some(_CHUNK_BYTES):
                    await stdio.send_all(bytes(chunk))
            except trio.BrokenResourceError:
                pass
            nursery.cancel_scope.cancel()
    finally:
        stdio.restore()


async def _carry_input(stdio: StdioByteStream, socket: trio.SocketStream) -> None:
    try:
        while chunk := await stdio.receive_some(_CHUNK_BYTES):
            await socket.send_all(chunk)
        await socket.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        # The other direction sees it too, and ends the bridge.
        pass
