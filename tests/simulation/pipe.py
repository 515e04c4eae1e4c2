"""One-way pipes in memory that cost a simulation as little as they can: one turn of the scheduler for each end."""

from collections.abc import Callable

import trio


class PipeEnd(trio.abc.SendStream):
    """What is written here is there at once, and stays when the writer is gone, as in the kernel's pipes."""

    def __init__(self) -> None:
        self._other = _ReadEnd()
        self.closed = False
        self.on_close: Callable[[], None] = lambda: None

    def write(self, data: bytes) -> None:
        """Raises trio.ClosedResourceError, trio.BrokenResourceError when nobody reads any more."""
        if self.closed:
            raise trio.ClosedResourceError
        if self._other.closed:
            raise trio.BrokenResourceError
        self._other.data += data
        self._other.changed.unpark_all()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self.write(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        if not self.closed:
            self.on_close()
        self.closed = self._other.ended = True
        self._other.changed.unpark_all()

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()


class _ReadEnd(trio.abc.ReceiveStream):
    def __init__(self) -> None:
        self.data = bytearray()
        self.changed = trio.lowlevel.ParkingLot()
        self.ended = False
        self.closed = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if not self.closed and not self.data and not self.ended:
            await self.changed.park()
        else:
            await trio.lowlevel.checkpoint()
        if self.closed:
            raise trio.ClosedResourceError
        count = len(self.data) if max_bytes is None else max_bytes
        chunk = bytes(self.data[:count])
        del self.data[:count]
        return chunk

    def close(self) -> None:
        self.closed = True
        self.changed.unpark_all()

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()


def make_pipe() -> tuple[PipeEnd, _ReadEnd]:
    end = PipeEnd()
    return end, end._other
