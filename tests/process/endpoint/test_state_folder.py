"""A state folder that can't be used costs the reports, and nothing else; `mlxsup deaths` says what is wrong with it."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.process.endpoint.conftest import User

Spoil = Callable[[Path], None]


@pytest.fixture
def book(user: User) -> Path:
    user.environment = {**user.environment, "MLXSUP_STATE": str(user.folder / "state")}
    return user.folder / "state" / "deaths.sqlite"


def break_folder(book: Path) -> None:
    book.parent.write_text("no folder")


def break_file(book: Path) -> None:
    book.parent.mkdir()
    book.write_bytes(b"no database, but as long as one " * 100)


def write_other_version(book: Path) -> None:
    book.parent.mkdir()
    with closing(sqlite3.connect(book)) as database, database:
        database.execute(
            "CREATE TABLE quarantined (digest TEXT PRIMARY KEY, at TEXT NOT NULL, entry TEXT NOT NULL)"
        )
        database.execute("INSERT INTO quarantined VALUES ('a', '2026', '{\"digest\":\"a\"}')")


@pytest.mark.parametrize("spoil", [break_folder, break_file, write_other_version])
def test_a_supervisor_serves_whatever_its_state_folder_holds(user: User, book: Path, spoil: Spoil) -> None:
    spoil(book)
    with user.start().connect() as client:
        assert client.call("server/health").ready


@pytest.mark.parametrize("spoil", [break_folder, break_file])
def test_the_command_says_what_is_wrong_where_and_what_to_do(user: User, book: Path, spoil: Spoil) -> None:
    spoil(book)
    asked = user.run("deaths")

    assert (asked.status, asked.stdout) == (1, b"")
    assert asked.stderr.startswith(f"mlxsup: the death book {book} can't be used: ")
    assert "move the file away" in asked.stderr
    assert "Traceback" not in asked.stderr


def test_the_command_leaves_out_what_another_version_wrote_and_says_so(user: User, book: Path) -> None:
    write_other_version(book)
    asked = user.run("deaths")

    assert (asked.status, asked.stdout) == (0, b"no worker has died\n")
    assert "can't read, left out" in asked.stderr
