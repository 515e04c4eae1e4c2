"""Where the stages of a pull say how far they are. Edge."""

import threading
import time
from typing import BinaryIO

import msgspec

from mlxsup.supervisor.models.fetcher.messages import Message, Phase, Progress

# A reader gets no more than ten lines of progress a second.
_INTERVAL_S = 0.1


class Reporter:
    """Writes messages to a stream, one a line; from any thread.

    Writing to a reader that has gone raises BrokenPipeError, which ends a fetcher whose supervisor has died.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._phase: Phase | None = None
        self._due = 0.0

    def progress(self, phase: Phase, bytes_done: int = 0, bytes_total: int | None = None) -> None:
        now = time.monotonic()
        if phase == self._phase and now < self._due and bytes_done != bytes_total:
            return
        self._phase, self._due = phase, now + _INTERVAL_S
        self.send(Progress(phase=phase, bytes_done=bytes_done, bytes_total=bytes_total))

    def send(self, message: Message) -> None:
        with self._lock:
            self._stream.write(msgspec.json.encode(message) + b"\n")
            self._stream.flush()
