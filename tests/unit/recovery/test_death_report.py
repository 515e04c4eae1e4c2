"""Reports and quarantined requests, on a SQLite file of the test's own."""

import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from mlxsup.supervisor.recovery.death_report import DeathBook, DeathBookError, DeathReport, RequestShape
from mlxsup.supervisor.recovery.memory_truth import MemorySample
from mlxsup.supervisor.recovery.poison import QuarantinedRequest


@pytest.fixture
def book(tmp_path: Path) -> DeathBook:
    return DeathBook(tmp_path / "state" / "deaths.sqlite", 3)


def report(number: int, model: str = "m") -> DeathReport:
    return DeathReport(
        at=f"2026-01-01T00:00:0{number}",
        model=model,
        generation=number,
        pid=100 + number,
        death_class="killed",
        phase="ready",
        exit_status=None,
        signal="SIGKILL",
        reason="because",
        lived_s=1.5,
        in_flight=[RequestShape(digest="d", tokens_delivered=3, max_tokens=10, resumed=1)],
        memory=[MemorySample(1.0, 2, 3)],
        stderr=["(5 characters)"],
        advice="look",
        action="1 resumed, restart after 0.0 s",
    )


def entry(digest: str) -> QuarantinedRequest:
    return QuarantinedRequest(digest=digest, model="m", deaths=2, death_class="aborted")


def test_a_book_that_nobody_wrote_is_empty_and_its_folder_is_the_users_own(
    book: DeathBook, tmp_path: Path
) -> None:
    assert book.read() == []
    assert book.read_quarantined() == []
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


def test_reports_come_back_whole_newest_first(book: DeathBook) -> None:
    for number in range(3):
        book.write(report(number))

    assert book.read() == [report(2), report(1), report(0)]
    assert book.read(limit=1) == [report(2)]


def test_the_oldest_reports_go_when_there_are_too_many(book: DeathBook) -> None:
    for number in range(7):
        book.write(report(number))

    assert [kept.generation for kept in book.read()] == [6, 5, 4]


def test_a_models_reports_can_be_read_alone(book: DeathBook) -> None:
    for number, model in enumerate("aba"):
        book.write(report(number, model))

    assert [kept.generation for kept in book.read("a")] == [2, 0]
    assert book.read("c") == []


def test_quarantined_requests_are_kept_once_in_order_and_bounded(book: DeathBook) -> None:
    for at, digest in enumerate("abacde"):
        book.write_quarantined(entry(digest), f"2026-01-01T00:00:0{at}")

    assert book.read_quarantined() == [entry("c"), entry("d"), entry("e")]


def test_forgetting_lets_all_of_them_try_again(book: DeathBook) -> None:
    book.write_quarantined(entry("a"), "1")
    book.write_quarantined(entry("b"), "2")
    book.write(report(1))

    assert book.forget_quarantined() == 2
    assert book.read_quarantined() == []
    assert book.read() == [report(1)]


def test_the_requests_of_one_model_can_be_read_and_forgotten_alone(book: DeathBook) -> None:
    book.write_quarantined(entry("a"), "1")
    other = msgspec.structs.replace(entry("b"), model="other")
    book.write_quarantined(other, "2")

    assert book.read_quarantined("other") == [other]
    assert book.forget_quarantined("other") == 1
    assert book.read_quarantined() == [entry("a")]


def test_another_book_on_the_same_file_reads_what_the_first_wrote(book: DeathBook, tmp_path: Path) -> None:
    book.write(report(1))
    book.write_quarantined(entry("a"), "1")
    other = DeathBook(tmp_path / "state" / "deaths.sqlite", 3)

    assert (other.read(), other.read_quarantined()) == ([report(1)], [entry("a")])


def test_a_file_that_is_no_database_is_told_with_its_path_and_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "deaths.sqlite"
    path.write_text("no database, but long enough to be mistaken for one " * 10)
    book = DeathBook(path, 3)
    for use in (lambda: book.write(report(1)), book.read, book.read_quarantined, book.forget_quarantined):
        with pytest.raises(DeathBookError, match=f"{path} .*not a database.*move the file away"):
            use()


def test_a_folder_that_cannot_be_made_is_told_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeathBookError, match=r"file/deaths\.sqlite can't be used: "):
        DeathBook(tmp_path / "file" / "deaths.sqlite", 3).read()


@pytest.mark.parametrize("entry_text", ['{"digest":"a"}', "[]", "no JSON", b"\xff"])
def test_what_another_version_wrote_is_left_out_and_the_log_says_so(
    book: DeathBook, tmp_path: Path, caplog: pytest.LogCaptureFixture, entry_text: str | bytes
) -> None:
    for number, digest in enumerate("ab"):
        book.write(report(number))
        book.write_quarantined(entry(digest), str(number))
    with closing(sqlite3.connect(tmp_path / "state" / "deaths.sqlite")) as database, database:
        database.execute("UPDATE quarantined SET entry = ? WHERE digest = 'a'", (entry_text,))
        database.execute("UPDATE deaths SET report = ? WHERE id = 1", (entry_text,))

    assert book.read() == [report(1)]
    assert book.read_quarantined() == [entry("b")]
    assert caplog.text.count("has an entry that this version can't read") == 2
    assert book.forget_quarantined() == 2
