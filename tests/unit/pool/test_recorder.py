"""A death becomes an event at once, and a report on disk that holds nothing of a prompt."""

import logging
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

ENTRY = QuarantinedRequest(digest="d", model="m", deaths=2, death_class="aborted")


async def test_a_death_leaves_an_event_and_a_report_with_its_facts_and_no_prompt(
    autojump_clock: MockClock, open_stage: OpenStage, tmp_path: Path
) -> None:
    book, events = DeathBook(tmp_path / "deaths.sqlite", 10), EventBus()
    seen: list[Event] = []
    recorder = DeathRecorder(book, events)
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


async def test_what_is_left_at_the_end_is_written_and_a_burst_beyond_the_bound_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    book = DeathBook(tmp_path / "deaths.sqlite", 1000)
    recorder = DeathRecorder(book, EventBus())
    for number in range(_WAITING_MAX + 1):
        recorder.request_quarantined(msgspec.structs.replace(ENTRY, digest=str(number)))
    async with trio.open_nursery() as nursery:
        nursery.cancel_scope.cancel()
        nursery.start_soon(recorder.run)

    assert len(book.read_quarantined()) == _WAITING_MAX
    assert "one report is lost" in caplog.text


async def test_what_happens_last_is_kept_when_the_end_comes_at_once(tmp_path: Path) -> None:
    book = DeathBook(tmp_path / "deaths.sqlite", 10)
    recorder = DeathRecorder(book, EventBus())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(recorder.run)
        await trio.testing.wait_all_tasks_blocked()
        recorder.request_quarantined(ENTRY)
        nursery.cancel_scope.cancel()

    assert book.read_quarantined() == [ENTRY]


async def test_without_a_thread_to_write_in_a_report_is_lost_and_the_recorder_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        await trio.lowlevel.checkpoint()
        raise RuntimeError("can't start new thread")

    recorder = DeathRecorder(DeathBook(tmp_path / "deaths.sqlite", 10), EventBus())
    monkeypatch.setattr(trio.to_thread, "run_sync", fail)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(recorder.run)
        recorder.request_quarantined(ENTRY)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()

    assert "can't start new thread" in caplog.text


async def test_what_is_forgiven_is_forgotten_on_disk_in_the_order_of_events(tmp_path: Path) -> None:
    book = DeathBook(tmp_path / "deaths.sqlite", 10)
    recorder = DeathRecorder(book, EventBus())
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
    recorder = DeathRecorder(DeathBook(tmp_path / "file" / "deaths.sqlite", 10), EventBus())
    recorder.request_quarantined(ENTRY)
    recorder.request_quarantined(ENTRY)
    async with trio.open_nursery() as nursery:
        nursery.cancel_scope.cancel()
        nursery.start_soon(recorder.run)

    assert caplog.text.count("cannot keep a death report") == 2
    assert all(record.levelno == logging.ERROR for record in caplog.records)
