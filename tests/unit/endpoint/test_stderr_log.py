"""A log that nobody reads costs its newest lines, and nobody who logs ever waits for it."""

import logging
import os
import select
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from mlxsup.supervisor.stderr_log import StderrLog

LIMIT_S = 10.0
LINES_MAX = 5
# More than any pipe holds.
LONG = "x" * (4 << 20)


class Reader:
    """The other end of stderr; it reads nothing until it is told to."""

    def __init__(self, descriptor: int) -> None:
        self._file = os.fdopen(descriptor, "rb")

    def wait(self) -> None:
        """Until something has been written."""
        select.select([self._file], [], [], LIMIT_S)

    def line(self) -> str:
        return self._file.readline().decode().rstrip()

    def rest(self) -> list[str]:
        return [line.rstrip() for line in self._file.read().decode().splitlines()]

    def close(self) -> None:
        self._file.close()


@pytest.fixture
def ends() -> Iterator[tuple[int, Reader]]:
    incoming, outgoing = os.pipe()
    reader = Reader(incoming)
    yield outgoing, reader
    reader.close()
    with suppress(OSError):
        os.close(outgoing)


def say(log: StderrLog, *texts: str) -> None:
    for text in texts:
        log.handle(logging.LogRecord("n", logging.INFO, "f", 1, text, None, None))


def words(lines: list[str]) -> list[str]:
    """Without the moment and the level."""
    return [line.split(" ", 3)[3] for line in lines]


def test_lines_are_written_in_their_order_and_all_of_them_by_the_end(ends: tuple[int, Reader]) -> None:
    outgoing, reader = ends
    log = StderrLog(100, outgoing)
    say(log, *(f"line {number}" for number in range(50)))

    assert log.finish(LIMIT_S)
    os.close(outgoing)
    assert words(reader.rest()) == [f"line {number}" for number in range(50)]


def test_while_nobody_reads_the_newest_lines_are_dropped_and_then_it_is_said_how_many(
    ends: tuple[int, Reader],
) -> None:
    outgoing, reader = ends
    log = StderrLog(LINES_MAX, outgoing)
    say(log, LONG)
    # The thread has it, and is stuck with it.
    reader.wait()
    say(log, *(f"kept {number}" for number in range(LINES_MAX)), *(["dropped"] * 7))
    first = reader.line()
    kept = words([reader.line() for _ in range(LINES_MAX)])
    notice = reader.line()
    say(log, "later")

    assert first.endswith(LONG)
    assert kept == [f"kept {number}" for number in range(LINES_MAX)]
    assert notice.endswith("WARNING 7 lines of the log were dropped: nobody read them in time")
    assert words([reader.line()]) == ["later"]
    assert log.finish(LIMIT_S)


def test_what_comes_after_a_gap_stands_behind_the_line_that_tells_of_it(ends: tuple[int, Reader]) -> None:
    outgoing, reader = ends
    log = StderrLog(1, outgoing)
    say(log, LONG)
    reader.wait()
    say(log, "kept", "dropped", "dropped")

    def end() -> None:
        log.finish(LIMIT_S)
        os.close(outgoing)

    writer = threading.Thread(target=end)
    writer.start()
    told = reader.rest()
    writer.join(LIMIT_S)

    assert words(told[1:2]) == ["kept"]
    assert told[2].endswith("2 lines of the log were dropped: nobody read them in time")


def test_the_end_waits_no_longer_than_its_grace_for_a_reader(ends: tuple[int, Reader]) -> None:
    outgoing, reader = ends
    log = StderrLog(LINES_MAX, outgoing)
    say(log, LONG)

    assert not log.finish(0.01)
    reader.close()


def test_a_descriptor_that_does_not_block_is_waited_for(ends: tuple[int, Reader]) -> None:
    outgoing, reader = ends
    os.set_blocking(outgoing, False)
    log = StderrLog(LINES_MAX, outgoing)
    say(log, LONG)

    assert reader.line().endswith(LONG)
    assert log.finish(LIMIT_S)


def test_a_reader_that_has_gone_stops_nobody(ends: tuple[int, Reader]) -> None:
    outgoing, reader = ends
    reader.close()
    log = StderrLog(LINES_MAX, outgoing)
    say(log, *(["unread"] * 20))

    assert log.finish(LIMIT_S)


def test_a_line_that_cannot_be_made_ends_nobody_and_says_which_it_was(ends: tuple[int, Reader]) -> None:
    outgoing, reader = ends
    log = StderrLog(LINES_MAX, outgoing)
    log.handle(logging.LogRecord("n", logging.INFO, "f", 1, "%d workers", ("no",), None))

    assert log.finish(LIMIT_S)
    assert reader.line() == "INFO '%d workers' with arguments that it has no place for"
