"""What one decision costs, in lines of Python that it runs: the same on every machine."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest

from mlxsup.protocol.generation import Priority
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.scheduling.waiting_room import WaitingRoom
from tests.fakes.rooms import AGE_STEP_S, make_room, request_of

TIERS = list(Priority)
DECISIONS = 60


class Lines:
    count = 0


@contextmanager
def counted_lines() -> Iterator[Lines]:
    lines = Lines()

    def trace(frame: FrameType, event: str, argument: Any) -> Callable[..., Any]:
        lines.count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lines
    finally:
        sys.settrace(before)


def crowded_room(waiting: int, clients: int) -> tuple[WaitingRoom, float]:
    """They came one after another in five times as long as it takes to age by one tier, so there are some of every age."""
    room = make_room(quantum_tokens=64)
    gap_s = 5 * AGE_STEP_S / waiting
    for number in range(waiting):
        at_s = number * gap_s
        deadline_s = at_s + 10.0 + number % 97 if number % 3 == 0 else None
        request = request_of(
            f"client {number % clients}", TIERS[number % 4], at_s=at_s, deadline_s=deadline_s
        )
        room.put(request, 1 + number * 31 % 200, at_s)
    now_s = waiting * gap_s
    room.peek(now_s)
    return room, now_s


def lines_for_each_decision(waiting: int, clients: int) -> float:
    """All kinds of decisions, each while one comes and one becomes more urgent, as many wait before as after."""
    room, now_s = crowded_room(waiting, clients)
    gap_s = 5 * AGE_STEP_S / waiting
    newcomers = [
        request_of(f"client {number % (clients + 7)}", TIERS[number % 4], at_s=now_s + number * gap_s)
        for number in range(3 * DECISIONS)
    ]
    cancelled = [request for request, _ in zip(list(room)[waiting // 2 :], range(DECISIONS), strict=False)]
    taken: list[GenerationRequest] = []
    with counted_lines() as lines:
        for number in range(DECISIONS):
            for newcomer in newcomers[3 * number : 3 * number + 3]:
                room.put(newcomer, 100, now_s)
            now_s += 3 * gap_s
            room.peek(now_s)
            served = room.pop(now_s)
            assert served is not None
            taken.append(served)
            room.remove(cancelled[number])
            urgent = room.peek_tier(Priority.INTERACTIVE)
            assert urgent is not None
            room.take(urgent)
            room.put_again(served, 50)
            least = room.least_urgent_newest()
            assert least is not None
            room.remove(least)
            room.ahead(Priority.NORMAL, "client 1", now_s)
    assert abs(len(room) - waiting) <= 3 * DECISIONS
    return lines.count / DECISIONS


@pytest.mark.slow
@pytest.mark.parametrize("clients", [10, 1_000_000])
def test_a_decision_costs_little_more_among_a_hundred_thousand_than_among_a_thousand(clients: int) -> None:
    few = lines_for_each_decision(1_000, clients)
    many = lines_for_each_decision(100_000, clients)

    # The logarithm grows by two thirds.
    assert many <= 5 / 3 * few
