"""A worker's turns at reading prompts, by what it says to the supervisor."""

import time
from typing import Any

import msgspec
import pytest

from mlxsup.worker.lease import WAIT_S_MAX, Lease


class Line:
    def __init__(self) -> None:
        self.said: list[str] = []
        self.params: list[Any] = []
        self.lease = Lease(self.say)

    def say(self, frame: bytes) -> None:
        message = msgspec.json.decode(frame)
        self.said.append(message["method"])
        self.params.append(message.get("params"))


def test_alone_it_asks_nobody() -> None:
    line = Line()
    assert line.lease.allows(10**6)
    line.lease.over()
    assert line.said == []


def test_a_long_chunk_is_asked_for_once_granted_and_ended_and_a_short_one_is_not() -> None:
    line = Line()
    line.lease.bound(64)
    assert line.lease.allows(63)
    for _ in range(3):
        assert not line.lease.allows(64)
        line.lease.ask(64, 1)
    line.lease.grant()
    assert line.lease.allows(64)
    line.lease.over()
    line.lease.over()
    assert not line.lease.allows(64)
    assert line.said == ["lease/ask", "lease/done"]
    assert line.params[0] == {"tokens": 64, "urgency": 1}


def test_a_turn_that_comes_when_nobody_wants_it_any_more_is_given_back() -> None:
    line = Line()
    line.lease.bound(64)
    line.lease.ask(64, 1)
    line.lease.over()
    line.lease.grant()
    assert line.said == ["lease/ask", "lease/done", "lease/done"]


def test_who_is_not_answered_in_time_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    line = Line()
    line.lease.bound(64)
    line.lease.ask(64, 1)
    now_s += WAIT_S_MAX - 0.1
    assert not line.lease.allows(64)
    now_s += 0.1
    assert line.lease.allows(64)


def test_when_the_others_are_gone_it_waits_no_longer() -> None:
    line = Line()
    line.lease.bound(64)
    line.lease.ask(64, 1)
    line.lease.bound(0)
    assert line.lease.allows(64)
    assert line.said == ["lease/ask", "lease/done"]
