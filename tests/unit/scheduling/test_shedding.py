import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxsup.protocol.generation import Priority
from mlxsup.supervisor.scheduling.shedding import Shedder

TARGET_S, INTERVAL_S = 5.0, 10.0
LATE_S = TARGET_S + 1


def make_shedder() -> Shedder:
    return Shedder(TARGET_S, INTERVAL_S)


def make_overloaded() -> Shedder:
    """Since the moment 0."""
    shedder = make_shedder()
    shedder.note_start(LATE_S, Priority.NORMAL, 0.0)
    return shedder


def refusals(shedder: Shedder, until_s: float) -> list[float]:
    """Moments at which one is refused, by somebody who looks when it is told to."""
    moments = []
    while (look_s := shedder.next_look_s) is not None and look_s <= until_s:
        assert not shedder.due(look_s - 0.001)
        assert shedder.due(look_s)
        moments.append(look_s)
    return moments


def test_nobody_is_refused_before_anybody_has_begun() -> None:
    shedder = make_shedder()

    assert shedder.next_look_s is None
    assert not shedder.due(1e9)


def test_the_first_is_refused_after_a_whole_interval_and_the_others_faster_and_faster() -> None:
    moments = refusals(make_overloaded(), 60.0)
    gaps = [after - before for before, after in itertools.pairwise([0.0, *moments])]

    assert gaps[0] == INTERVAL_S
    assert gaps[1:] == pytest.approx([INTERVAL_S / n**0.5 for n in range(1, len(gaps))])
    assert len(gaps) > 5


@given(st.lists(st.tuples(st.floats(0.0, 9.0), st.floats(0.0, 100.0)), max_size=50))
def test_nobody_is_refused_while_one_in_each_interval_begins_in_time(
    steps: list[tuple[float, float]],
) -> None:
    shedder, now_s = make_shedder(), 0.0
    for gap_s, waited_s in steps:
        now_s += gap_s
        assert not shedder.due(now_s)
        shedder.note_start(waited_s, Priority.HIGH, now_s)
        shedder.note_start(TARGET_S, Priority.HIGH, now_s)


def test_each_more_that_begins_late_does_not_put_it_off() -> None:
    shedder = make_overloaded()
    for now_s in range(1, 10):
        shedder.note_start(LATE_S, Priority.NORMAL, now_s)

    assert shedder.next_look_s == INTERVAL_S


def test_one_that_begins_in_time_ends_it_and_the_next_whole_interval_begins_it_anew() -> None:
    shedder = make_overloaded()
    assert refusals(shedder, 12.0) == [10.0]
    shedder.note_start(TARGET_S, Priority.NORMAL, 13.0)
    assert shedder.next_look_s is None
    assert not shedder.due(100.0)
    shedder.note_start(LATE_S, Priority.NORMAL, 100.0)

    assert refusals(shedder, 125.0) == [110.0, 120.0]


def test_when_it_begins_again_soon_it_goes_on_faster_than_it_began_the_first_time() -> None:
    shedder = make_overloaded()
    before = refusals(shedder, 40.0)
    now_s = before[-1]
    shedder.note_start(0.0, Priority.NORMAL, now_s + 0.1)
    shedder.note_start(LATE_S, Priority.NORMAL, now_s + 0.2)
    first, second = refusals(shedder, now_s + 0.2 + INTERVAL_S + 6.0)[:2]

    assert first == now_s + 0.2 + INTERVAL_S
    assert second - first == pytest.approx(INTERVAL_S / (len(before) - 1) ** 0.5)


def test_background_may_wait_as_long_as_it_likes_and_says_nothing_of_the_others() -> None:
    shedder = make_shedder()
    shedder.note_start(1000.0, Priority.BACKGROUND, 0.0)
    assert shedder.next_look_s is None

    overloaded = make_overloaded()
    overloaded.note_start(0.0, Priority.BACKGROUND, 5.0)
    assert refusals(overloaded, 10.0) == [10.0]


def test_nobody_is_refused_when_nobody_waits_but_background() -> None:
    shedder = make_overloaded()
    assert shedder.due(10.0)
    shedder.note_empty()

    assert not shedder.due(1000.0)


def test_who_looks_late_refuses_one_and_not_all_that_would_have_been() -> None:
    shedder = make_overloaded()

    assert shedder.due(500.0)
    assert not shedder.due(500.0)
