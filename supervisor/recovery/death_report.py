"""What is kept of a worker's death, and where: a report in SQLite, without a word of any prompt. Edge."""

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from mlxsup.supervisor.recovery.memory_truth import MemorySample
from mlxsup.supervisor.recovery.poison import QuarantinedRequest
from mlxsup.supervisor.recovery.signal_origin import Origin

_SCHEMA = """
CREATE TABLE IF NOT EXISTS deaths (id INTEGER PRIMARY KEY, at TEXT NOT NULL, model TEXT NOT NULL, report TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS quarantined (digest TEXT PRIMARY KEY, at TEXT NOT NULL, entry TEXT NOT NULL);
"""
_BUSY_S = 5.0

_log = logging.getLogger(__name__)

RowT = TypeVar("RowT", bound=msgspec.Struct)


class DeathBookError(Exception):
    """The book can't be read or written: a full or read-only disk, or a file that is no database any more."""


class RequestShape(msgspec.Struct, frozen=True, kw_only=True):
    """A request that was in flight: its sizes, and its digest to find it again by."""

    digest: str
    tokens_delivered: int
    max_tokens: int
    resumed: int


class DeathReport(msgspec.Struct, frozen=True, kw_only=True):
    """`at` is UTC, ISO 8601. `stderr` are the worker's last lines, redacted. `origin` is where the signal came from.
    `given_up` is the state that the model was left in, where no other worker was to come.
    """

    at: str
    model: str
    generation: int
    pid: int
    death_class: str
    phase: str
    exit_status: int | None
    signal: str | None
    reason: str | None
    lived_s: float
    in_flight: list[RequestShape]
    memory: list[MemorySample]
    stderr: list[str]
    advice: str
    action: str
    origin: Origin | None = None
    given_up: str | None = None


class DeathBook:
    """Reports, newest first, and quarantined requests; of each the oldest go beyond `reports_max`. Blocks on the disk.

    What another version wrote and this one can't read is left out. Every method raises DeathBookError.
    """

    def __init__(self, path: Path, reports_max: int) -> None:
        self._path = path
        self._reports_max = reports_max

    def write(self, report: DeathReport) -> None:
        with self._open() as database:
            database.execute(
                "INSERT INTO deaths (at, model, report) VALUES (?, ?, ?)",
                (report.at, report.model, msgspec.json.encode(report).decode()),
            )
            database.execute(
                "DELETE FROM deaths WHERE id NOT IN (SELECT id FROM deaths ORDER BY id DESC LIMIT ?)",
                (self._reports_max,),
            )

    def read(self, model: str | None = None, limit: int = 20) -> list[DeathReport]:
        query = "SELECT report FROM deaths WHERE ? IS NULL OR model = ? ORDER BY id DESC LIMIT ?"
        return self._read(DeathReport, query, (model, model, limit))

    def write_quarantined(self, entry: QuarantinedRequest, at: str) -> None:
        with self._open() as database:
            database.execute(
                "INSERT OR REPLACE INTO quarantined (digest, at, entry) VALUES (?, ?, ?)",
                (entry.digest, at, msgspec.json.encode(entry).decode()),
            )
            database.execute(
                "DELETE FROM quarantined WHERE digest NOT IN (SELECT digest FROM quarantined ORDER BY at DESC LIMIT ?)",
                (self._reports_max,),
            )

    def read_quarantined(self, model: str | None = None) -> list[QuarantinedRequest]:
        """Oldest first; of one model, or of all."""
        entries = self._read(QuarantinedRequest, "SELECT entry FROM quarantined ORDER BY at", ())
        return [entry for entry in entries if model in (None, entry.model)]

    def forget_quarantined(self, model: str | None = None) -> int:
        """Let those of one model try again, or all, also those that can't be read; how many there were."""
        forgotten = [(entry.digest,) for entry in self.read_quarantined(model)]
        with self._open() as database:
            if model is None:
                return database.execute("DELETE FROM quarantined").rowcount
            database.executemany("DELETE FROM quarantined WHERE digest = ?", forgotten)
        return len(forgotten)

    def _read(self, row_type: type[RowT], query: str, values: tuple[object, ...]) -> list[RowT]:
        with self._open() as database:
            rows = database.execute(query, values).fetchall()
        known = []
        for (text,) in rows:
            try:
                known.append(msgspec.json.decode(text, type=row_type))
            except (msgspec.MsgspecError, UnicodeError) as error:
                _log.warning("%s has an entry that this version can't read, left out: %s", self._path, error)
        return known

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with closing(sqlite3.connect(self._path, timeout=_BUSY_S)) as database, database:
                database.executescript(_SCHEMA)
                yield database
        except (OSError, sqlite3.Error) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise DeathBookError(
                f"the death book {self._path} can't be used: {reason}; see that the disk has room and that the file and "
                "its folder are yours to write, or move the file away: a new one is begun"
            ) from error
