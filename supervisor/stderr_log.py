"""The log, on a stderr that its reader may leave unread for as long as it likes. Edge.

Whoever logs only puts a line into a queue: a pipe that is full blocks the one thread that writes, and nobody else.
"""

import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

_FORMAT = "%(asctime)s %(levelname)s %(message)s"
_STDERR = 2


class StderrLog(logging.Handler):
    """Keeps up to `lines_max` lines until they can be written; the newest are dropped beyond it, and counted."""

    def __init__(self, lines_max: int, descriptor: int = _STDERR) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter(_FORMAT))
        self._lines_max = lines_max
        self._descriptor = descriptor
        self._waiting: deque[str] = deque()
        self._dropped = 0
        self._changed = threading.Condition()
        self._ending = False
        # A daemon: at the end of the process it may still be stuck in a write.
        self._thread = threading.Thread(target=self._write_lines, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001  (a line that can't be made ends nothing but itself)
            line = f"{record.levelname} {record.msg!r} with arguments that it has no place for"
        with self._changed:
            if self._ending or len(self._waiting) >= self._lines_max:
                self._dropped += 1
            else:
                if self._dropped:
                    self._waiting.append(self._take_dropped())
                self._waiting.append(line)
            self._changed.notify()

    def finish(self, grace_s: float) -> bool:
        """Write what waits, for at most `grace_s`; whether all of it was written."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join(grace_s)
        return not self._thread.is_alive()

    def _take_dropped(self) -> str:
        dropped, self._dropped = self._dropped, 0
        moment = logging.Formatter(_FORMAT).formatTime(logging.makeLogRecord({"created": time.time()}))
        return f"{moment} WARNING {dropped} lines of the log were dropped: nobody read them in time"

    def _write_lines(self) -> None:
        written = True
        while (line := self._next_line(written)) is not None:
            written = self._write(f"{line}\n".encode(errors="backslashreplace"))
            if not written:
                with self._changed:
                    self._dropped += 1

    def _next_line(self, writable: bool) -> str | None:
        """None at the end. What was dropped is told of at once, or with the next line if that could not be written."""
        with self._changed:
            while not self._waiting:
                if self._dropped and writable:
                    return self._take_dropped()
                if self._ending:
                    return None
                self._changed.wait()
            return self._waiting.popleft()

    def _write(self, data: bytes) -> bool:
        # Not through sys.stderr: its lock, held by a thread that is stuck, would abort the interpreter at its end.
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:
                select.select([], [self._descriptor], [])
            except OSError:
                return False
        return True


@contextmanager
def log_to_stderr(level: int, lines_max: int, flush_s: float) -> Iterator[None]:
    """Log to stderr; at the end of the block what still waits is written for at most `flush_s`."""
    log = StderrLog(lines_max)
    logging.basicConfig(level=level, handlers=[log])
    try:
        yield
    finally:
        if not log.finish(flush_s):
            # Nobody reads it, and what else this process has to say must not block its end.
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, _STDERR)
            os.close(nothing)
