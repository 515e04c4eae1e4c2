"""A death becomes an event at once, and a report on disk that holds nothing of a prompt."""

import logging
import math
import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
import trio
from trio.testing import MockClock

from mlxsup.protocol.service import Event
from mlxsup.supervisor.events import EventBus
from mlxsup.supervisor.recovery.death_report import DeathBook
from mlxsup.supervisor.recovery.poison import QuarantinedRequest
from mlxsup.supervisor.recovery.recorder import _WAITING_MAX, DeathRecorder
from tests.fakes.collecting_sink import CollectingSink
from tests.fakes.requests import make_request
from tests.unit.pool.conftest import OpenStage

FLUSH_S = 60.0
LIMIT_S = 10.0
ENTRY = QuarantinedRequest(digest="d", model="m", deaths=2, death_class="aborted")


async def test_a_death_leaves_an_event_and_a_report_with_its_facts_and_no_prompt(
    autojump_clock: MockClock, open_stage: OpenStage, tmp_path: Path
) -> None:
    book, events = DeathBook(tmp_path / "deaths.sqlite", 10), EventBus()
    seen: list[Event] = []
    recorder = DeathRecorder(book, events, math.inf)
    async with open_stage() as stage:
        await stage.runner.ensure_ready()
        stage.runner.submit(make_request(CollectingSink(), prompt="xylophone", tokens=100))
        await trio.sleep(2.05)
        await stage.worker.complaints.send_all(b"ValueError: bad prompt: xylophone\n")
        await trio.sleep(0.01)
        stage.worker.die(69)
        await trio.sleep(0.1)
        ((life, evidence, aftermath),) = stage.notes.deaths
        with events.subscribed(seen.append):
            recorder.worker_died("m", life, evidence, aftermath)
        recorder.request_quarantined(ENTRY)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(recorder.run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()

    (event,) = seen
    (report,) = book.read()
    assert (event.topic, event.model, event.what) == ("death", "m", "defect")
    assert (report.death_class, report.exit_status, report.phase, report.pid) == ("defect", 69, "ready", 1000)
    assert (report.generation, report.in_flight[0].max_tokens, report.in_flight[0].tokens_delivered) == (
        1,
        100,
        21,
    )
    assert report.stderr == ["ValueError … (33 characters)"]
    assert report.memory
    assert report.lived_s == pytest.approx(4.5, abs=0.2)
    assert report.action == "1 resumed, restart after 0.0 s"
    assert b"xylophone" not in msgspec.json.encode([report, event])
    assert book.read_quarantined() == [ENTRY]


async def write_what_waits(recorder: DeathRecorder) -> None:
    async with trio.open_nursery() as nursery:
        nursery.cancel_scope.cancel()
        nursery.start_soon(recorder.run)


async def test_what_is_left_at_the_end_is_written_and_what_is_lost_of_a_burst_is_logged_once_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    book = DeathBook(tmp_path / "deaths.sqlite", 1000)
    recorder = DeathRecorder(book, EventBus(), FLUSH_S)
    for number in range(_WAITING_MAX + 7):
        recorder.request_quarantined(msgspec.structs.replace(ENTRY, digest=str(number)))
    burst = caplog.messages.copy()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(recorder.run)
        with trio.fail_after(LIMIT_S):
            while len(caplog.messages) == len(burst):  # noqa: ASYNC110  (the log has no event)
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()

    assert len(book.read_quarantined()) == _WAITING_MAX
    assert burst == ["the death book can't be written as fast as it grows: entries are lost"]
    assert caplog.messages[1:] == ["7 entries of the death book are lost"]


async def test_forgiving_again_and_again_takes_no_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    book = DeathBook(tmp_path / "deaths.sqlite", 1000)
    recorder = DeathRecorder(book, EventBus(), FLUSH_S)
    for number in range(2 * _WAITING_MAX):
        recorder.request_quarantined(msgspec.structs.replace(ENTRY, digest=str(number)))
        recorder.requests_forgiven(ENTRY.model)
        recorder.requests_forgiven("other")
    other = msgspec.structs.replace(ENTRY, model="other")
    recorder.request_quarantined(other)
    recorder.requests_forgiven(ENTRY.model)
    await write_what_waits(recorder)

    assert book.read_quarantined() == [other]
    assert caplog.messages == []


async def test_the_end_waits_for_a_locked_book_no_longer_than_it_may_and_says_what_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    book = DeathBook(tmp_path / "deaths.sqlite", 10)
    book.write_quarantined(ENTRY, "2026")
    recorder = DeathRecorder(book, EventBus(), 0.05)
    with closing(sqlite3.connect(tmp_path / "deaths.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for number in range(5):
            recorder.request_quarantined(msgspec.structs.replace(ENTRY, digest=str(number)))
        # One entry alone would wait for longer.
        with trio.fail_after(4.0):
            await write_what_waits(recorder)

    assert caplog.messages == ["the end waits no longer for the death book: 5 entries are lost"]


async def test_what_happens_last_is_kept_when_the_end_comes_at_once(tmp_path: Path) -> None:
    book = DeathBook(tmp_path / "deaths.sqlite", 10)
    recorder = DeathRecorder(book, EventBus(), FLUSH_S)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(recorder.run)
        await trio.testing.wait_all_tasks_blocked()
        recorder.request_quarantined(ENTRY)
        nursery.cancel_scope.cancel()

    assert book.read_quarantined() == [ENTRY]


async def test_without_a_thread_to_write_in_a_report_is_lost_and_the_recorder_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        await trio.lowlevel.checkpoint()
        raise RuntimeError("can't start new thread")

    recorder = DeathRecorder(DeathBook(tmp_path / "deaths.sqlite", 10), EventBus(), FLUSH_S)
    monkeypatch.setattr(trio.to_thread, "run_sync", fail)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(recorder.run)
        recorder.request_quarantined(ENTRY)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()

    assert "can't start new thread" in caplog.text


async def test_what_is_forgiven_is_forgotten_on_disk_in_the_order_of_events(tmp_path: Path) -> None:
    book = DeathBook(tmp_path / "deaths.sqlite", 10)
    recorder = DeathRecorder(book, EventBus(), FLUSH_S)
    again = msgspec.structs.replace(ENTRY, digest="later")
    recorder.request_quarantined(ENTRY)
    recorder.requests_forgiven(ENTRY.model)
    recorder.request_quarantined(again)
    async with trio.open_nursery() as nursery:
        nursery.cancel_scope.cancel()
        nursery.start_soon(recorder.run)

    assert book.read_quarantined() == [again]


async def test_a_disk_that_cannot_be_written_is_logged_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    recorder = DeathRecorder(DeathBook(tmp_path / "file" / "deaths.sqlite", 10), EventBus(), FLUSH_S)
    recorder.request_quarantined(ENTRY)
    recorder.request_quarantined(ENTRY)
    async with trio.open_nursery() as nursery:
        nursery.cancel_scope.cancel()
        nursery.start_soon(recorder.run)

    assert caplog.text.count("cannot keep a death report") == 2
    assert all(record.levelno == logging.ERROR for record in caplog.records)
