"""What a supervisor did a second, from two looks at its counters."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxsup.protocol.service import Counters, Stats
from mlxsup.supervisor.cli.top_rates import History, Rate, rates_between
from tests.unit.cli.top_sights import counters, stats

COUNTS = st.tuples(*[st.integers(0, 10**12)] * 4)
UPTIMES_S = st.floats(0.0, 1e9)


def counted(counts: tuple[int, ...]) -> Counters:
    prompt, completion, ended, refused = counts
    return counters(prompt=prompt, completion=completion, ended=ended, refused=refused)


def all_the_same(uptime_s: float, counts: tuple[int, ...]) -> Stats:
    """One model, one tier."""
    same = counted(counts)
    return stats(uptime_s, overall=same, models={"m": same}, priorities={"normal": same})


@given(UPTIMES_S, COUNTS, st.floats(0.001, 1e6), COUNTS)
def test_a_rate_is_what_was_gained_over_the_time_of_the_supervisors_own_clock(
    uptime_s: float, counts: tuple[int, ...], over_s: float, gained: tuple[int, ...]
) -> None:
    later = all_the_same(uptime_s + over_s, tuple(map(sum, zip(counts, gained, strict=True))))
    rates = rates_between(all_the_same(uptime_s, counts), later)
    if later.supervisor.uptime_s == uptime_s:
        assert rates is None
        return
    assert rates is not None
    elapsed_s = later.supervisor.uptime_s - uptime_s
    expected = Rate(*(gain / elapsed_s for gain in gained))
    assert rates.overall == rates.models["m"] == rates.priorities["normal"] == expected


@given(UPTIMES_S, COUNTS, UPTIMES_S, COUNTS)
def test_whatever_two_supervisors_count_no_rate_is_negative_or_no_number(
    uptime_s: float, counts: tuple[int, ...], later_s: float, later: tuple[int, ...]
) -> None:
    rates = rates_between(all_the_same(uptime_s, counts), all_the_same(later_s, later))
    if rates is None:
        assert later_s <= uptime_s or any(old > new for old, new in zip(counts, later, strict=True))
        return
    for rate in (rates.overall, rates.models["m"], rates.priorities["normal"]):
        values = (rate.prompt_tokens, rate.completion_tokens, rate.ended, rate.refused)
        assert all(math.isfinite(value) and value >= 0 for value in values)


def test_no_time_between_two_looks_gives_no_rates() -> None:
    assert rates_between(all_the_same(5.0, (1, 1, 1, 1)), all_the_same(5.0, (9, 9, 9, 9))) is None


def test_a_model_that_was_first_asked_since_counts_from_zero() -> None:
    before = stats(10.0)
    rates = rates_between(before, stats(12.0, models={"new": counted((0, 30, 2, 0))}))
    assert rates is not None
    assert rates.models["new"] == Rate(0.0, 15.0, 1.0, 0.0)


@pytest.mark.parametrize("forgotten", ["models", "priorities"])
def test_a_supervisor_that_knows_less_than_before_is_another_one(forgotten: str) -> None:
    known = {"models": {"m": counters()}, "priorities": {"normal": counters()}}
    now = {**known, forgotten: {}}
    assert rates_between(stats(1.0, **known), stats(2.0, **now)) is None  # type: ignore[arg-type]


def test_a_history_gives_rates_of_the_last_seconds() -> None:
    history = History()
    rates = [
        history.take(stats(second, overall=counters(completion=second * second))) for second in range(60)
    ]
    assert rates[0] is None
    latest = rates[-1]
    assert latest is not None
    assert latest.over_s == 5.0
    assert latest.overall.completion_tokens == (59 * 59 - 54 * 54) / 5


def test_a_history_with_longer_intervals_gives_rates_of_the_last_one() -> None:
    history = History()
    for second in (0, 30, 60):
        rates = history.take(stats(second, overall=counters(completion=second * 2)))
    assert rates is not None
    assert rates.over_s == 30.0


def test_a_history_begins_again_after_a_restart() -> None:
    history = History()
    history.take(stats(10.0, overall=counters(completion=1000)))
    assert history.take(stats(11.0, overall=counters(completion=3))) is None
    rates = history.take(stats(13.0, overall=counters(completion=9)))
    assert rates is not None
    assert rates.overall.completion_tokens == 3.0
