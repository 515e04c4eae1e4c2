"""Many streams at once over raw sockets: what is read is stamped and kept, and only understood after the run.

A client that decoded each delta as it came would measure itself, and take the processor from what it measures.
"""

import select
import socket
import struct
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from mlxsup.protocol.client.exchange import Exchange, read_result
from mlxsup.protocol.generation import GenerationResult, StreamDelta
from mlxsup.protocol.jsonrpc import Response

_READ_BYTES = 256 * 1024
_METHOD = "generate"
# How long one wait for the only connection lasts at most.
_SLICE_S = 0.05


def _timeval(seconds: float) -> bytes:
    return struct.pack("@ll", int(seconds), round(seconds % 1 * 1_000_000))


class Heard(msgspec.Struct):
    """Of one stream: its deltas with the moments, of the monotonic clock in nanoseconds, at which they were read."""

    deltas: list[tuple[int, str]] = []
    result: GenerationResult | None = None


class _Line:
    """One connection, and what was read from it."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(str(path))
        self.exchange = Exchange()
        self.chunks: list[tuple[int, bytes]] = []
        self.heard: dict[int, Heard] = {}


class Crowd:
    """`connections` clients, each with any number of streams."""

    def __init__(self, path: Path, connections: int) -> None:
        self._lines = [_Line(path) for _ in range(connections)]
        self._by_descriptor = {line.socket.fileno(): line for line in self._lines}
        # Cheaper at each wake-up than `selectors` is.
        self._poll = select.poll()
        for descriptor in self._by_descriptor:
            self._poll.register(descriptor, select.POLLIN)
        if connections == 1:
            # Then nobody has to be asked which one it is.
            self._lines[0].socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(_SLICE_S))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for line in self._lines:
            line.socket.close()

    def ask(self, streams: list[dict[str, Any]]) -> None:
        """Send requests for text, dealt to the connections one after the other."""
        for number, params in enumerate(streams):
            line = self._lines[number % len(self._lines)]
            id, request = line.exchange.request(_METHOD, {**params, "stream": True})
            line.heard[id] = Heard()
            line.socket.sendall(request)

    def listen(self, seconds: float) -> None:
        """Read whatever comes."""
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0:
            self._read(left_s)

    def hang_up(self, timeout_s: float) -> list[Heard]:
        """Cancel all streams, read them to their ends, and give what came of each.

        Raises:
            TimeoutError: some have no end.
            RpcError: one was refused, or failed.
        """
        for line in self._lines:
            line.socket.sendall(b"".join(map(line.exchange.cancel, line.heard)))
        end_s = time.monotonic() + timeout_s
        while any(self._understand(line) for line in self._lines):
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError(f"streams that were cancelled have no end within {timeout_s:g} s")
            self._read(left_s)
        return [heard for line in self._lines for heard in line.heard.values()]

    def _read(self, timeout_s: float) -> None:
        if len(self._lines) == 1:
            with suppress(BlockingIOError):
                self._receive(self._lines[0])
            return
        for descriptor, _ in self._poll.poll(timeout_s * 1000):
            self._receive(self._by_descriptor[descriptor])

    def _receive(self, line: _Line) -> None:
        chunk = line.socket.recv(_READ_BYTES)
        line.chunks.append((time.monotonic_ns(), chunk))
        if not chunk:
            raise ConnectionError("the supervisor closed a connection")

    def _understand(self, line: _Line) -> int:
        """Read what has come; so many streams of it have not ended."""
        for moment_ns, chunk in line.chunks:
            for message in line.exchange.read(chunk):
                if isinstance(message, StreamDelta):
                    assert isinstance(message.id, int)
                    line.heard[message.id].deltas.append((moment_ns, message.text))
                elif isinstance(message, Response):
                    assert isinstance(message.id, int)
                    line.heard[message.id].result = read_result(_METHOD, message)
        line.chunks.clear()
        return sum(heard.result is None for heard in line.heard.values())
