"""The end of a worker's stderr, bounded in lines and in bytes; each line with the time that it came at. Pure."""

from collections import deque


class StderrTail:
    def __init__(self, lines_max: int, line_bytes_max: int) -> None:
        self._lines: deque[tuple[str, float]] = deque(maxlen=lines_max)
        self._line_bytes_max = line_bytes_max
        self._open = bytearray()
        self._fed_s = 0.0

    def feed(self, chunk: bytes, now_s: float) -> list[str]:
        """Take bytes; the lines that they completed, each cut to its bound."""
        self._open += chunk
        self._fed_s = now_s
        *lines, rest = self._open.split(b"\n")
        completed = [self._keep(bytes(line)) for line in lines]
        # What is over the bound is cut here, so that a line without end takes no memory.
        self._open = rest[: self._line_bytes_max]
        return completed

    def finish(self) -> list[str]:
        """The stream has ended: the last line may have had no newline."""
        if not self._open:
            return []
        line, self._open = bytes(self._open), bytearray()
        return [self._keep(line)]

    @property
    def lines(self) -> tuple[str, ...]:
        return tuple(line for line, _ in self._lines)

    def count_before(self, moment_s: float) -> int:
        """How many of `lines` had come before then; they are the first."""
        return sum(came_s < moment_s for _, came_s in self._lines)

    def _keep(self, line: bytes) -> str:
        text = line[: self._line_bytes_max].decode("utf-8", "replace").rstrip("\r")
        self._lines.append((text, self._fed_s))
        return text
