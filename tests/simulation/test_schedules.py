"""Thousands of schedules of everything that can go wrong; other ones each day, all known by their seeds."""

from datetime import UTC, datetime

import pytest

from tests.simulation.campaign import run_schedules
from tests.simulation.report import show_tally

SCHEDULES = 2000
# What has to have been put to the test, or the checks prove nothing.
SEEN = (
    *("answered: length", "answered: cancelled", "answered: overloaded", "answered: deadline_exceeded"),
    *("answered: quarantined", "answered: circuit_open", "answered: worker_died", "answered: shutting_down"),
    *("deaths: hung", "deaths: killed", "deaths: protocol_broken", "deaths: gpu_out_of_memory"),
    *("requests: resumed", "requests: quarantined", "asked: model/recycle", "schedules: shut down midway"),
    *("states: backoff", "states: quarantined", "states: failed", "struck: stopped", "struck: poison"),
)


@pytest.mark.slow
def test_whatever_happens_each_request_gets_its_text_and_its_end_and_nothing_is_left_behind() -> None:
    first = datetime.now(UTC).toordinal() * SCHEDULES
    tally = run_schedules(first, SCHEDULES, processes=2)
    shown = "\n".join(show_tally(tally, first))
    print(shown)

    assert not tally.broken, shown
    assert [what for what in SEEN if tally.seen[what] < 10] == []
