"""What carries a connection's bytes: a Unix socket, or the pipes, files and terminals of stdin and stdout."""

import os
import select
import stat
import sys
from contextlib import closing, suppress
from typing import Protocol

import trio

# How soon a client's leaving is noticed once it has ended its input; the kernel has no event for it alone.
_GONE_INTERVAL_S = 0.05


class SocketByteStream:
    """A connected socket. A client that only ended its input still reads; one that closed has hung up."""

    def __init__(self, socket: trio.SocketStream) -> None:
        self._socket = socket

    async def receive_some(self, max_bytes: int) -> bytes:
        return bytes(await self._socket.receive_some(max_bytes))

    async def send_all(self, data: bytes) -> None:
        await self._socket.send_all(data)

    async def wait_gone(self) -> None:
        await _wait_hang_up(self._socket.socket.fileno())


class _Side(Protocol):
    """One direction of stdin and stdout; each class below uses what its kind of file can do."""

    async def read(self, max_bytes: int) -> bytes: ...

    async def write(self, data: bytes) -> None: ...

    def restore(self) -> None: ...


class _PollableSide:
    """A pipe or a socket. Its file description may be shared with whoever started us: blocking mode is restored."""

    def __init__(self, descriptor: int) -> None:
        self._shared = os.dup(descriptor)
        self._stream = trio.lowlevel.FdStream(descriptor)

    async def read(self, max_bytes: int) -> bytes:
        return bytes(await self._stream.receive_some(max_bytes))

    async def write(self, data: bytes) -> None:
        await self._stream.send_all(data)

    def restore(self) -> None:
        os.set_blocking(self._shared, True)
        os.close(self._shared)


class _ThreadedSide:
    """A file or a terminal: the kernel can't tell when it is ready, or must not be asked to."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    async def read(self, max_bytes: int) -> bytes:
        try:
            return await trio.to_thread.run_sync(os.read, self._descriptor, max_bytes, abandon_on_cancel=True)
        except OSError as error:
            # A terminal that was closed reads as EIO.
            raise trio.BrokenResourceError from error

    async def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                # A terminal may be stopped, and a write to it last as long as its user likes.
                written = await trio.to_thread.run_sync(
                    os.write, self._descriptor, view, abandon_on_cancel=True
                )
                view = view[written:]
            except OSError as error:
                raise trio.BrokenResourceError from error

    def restore(self) -> None:
        pass


class StdioByteStream:
    """`incoming` and `outgoing` are descriptors of our own, as `claim_pipes` gives them."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        self._outgoing = outgoing
        self._reader = _side(incoming)
        self._writer = _side(outgoing)

    async def receive_some(self, max_bytes: int) -> bytes:
        return await self._reader.read(max_bytes)

    async def send_all(self, data: bytes) -> None:
        await self._writer.write(data)

    async def wait_gone(self) -> None:
        await _wait_hang_up(self._outgoing)

    def restore(self) -> None:
        """Make the descriptions blocking again, for whoever shares them; nothing is read or written after it."""
        self._reader.restore()
        self._writer.restore()


def _side(descriptor: int) -> _Side:
    mode = os.fstat(descriptor).st_mode
    pollable = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
    return _PollableSide(descriptor) if pollable else _ThreadedSide(descriptor)


async def _wait_hang_up(descriptor: int) -> None:
    """Until the other side of a pipe or a socket is gone; for ever with a file."""
    with suppress(OSError):
        while not _hung_up(descriptor):  # noqa: ASYNC110  (the kernel has no event to wait for)
            await trio.sleep(_GONE_INTERVAL_S)


def _hung_up(descriptor: int) -> bool:
    if sys.platform == "darwin":
        # There poll reports nothing for a descriptor that it was asked nothing about.
        with closing(select.kqueue()) as queue:
            interest = select.kevent(descriptor, select.KQ_FILTER_WRITE, select.KQ_EV_ADD)
            return any(event.flags & select.KQ_EV_EOF for event in queue.control([interest], 1, 0))
    poll = select.poll()
    poll.register(descriptor, 0)
    return bool(poll.poll(0))
