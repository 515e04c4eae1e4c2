"""When the next worker starts is a formula; the random number is the test's own."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxsup.supervisor.recovery.restart_policy import RestartLimits, RestartPolicy

LIMITS = RestartLimits(
    backoff_base_s=1.0, backoff_max_s=60.0, healthy_s=600.0, restarts_max=1000, window_s=300.0
)
BUDGET = RestartLimits(
    backoff_base_s=1.0, backoff_max_s=60.0, healthy_s=600.0, restarts_max=5, window_s=300.0
)


def upper(low: float, high: float) -> float:
    assert low == 0.0
    return high


def policy(limits: RestartLimits = LIMITS, uniform: Callable[[float, float], float] = upper) -> RestartPolicy:
    return RestartPolicy(limits, uniform)


def test_the_first_restart_comes_at_once_and_the_bound_of_each_after_it_is_twice_the_last() -> None:
    asked = policy()

    assert [asked.note_death(1, 0.0) for _ in range(9)] == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=30))
def test_the_wait_is_the_random_share_of_its_bound(shares: list[float]) -> None:
    drawn = iter(shares)
    asked = policy(uniform=lambda low, high: low + next(drawn) * (high - low))

    waits = [asked.note_death(1, 0.0) for _ in range(len(shares) + 1)]

    assert waits == [0.0, *(share * min(60.0, 2.0**n) for n, share in enumerate(shares))]


def test_a_worker_that_was_ready_for_long_makes_the_next_restart_the_first_again() -> None:
    asked = policy()
    for _ in range(4):
        asked.note_death(1, 0.0)

    assert asked.note_death(1, 100.0 + 599.9, ready_s=100.0) == 8.0
    assert asked.note_death(1, 1600.0, ready_s=1000.0) == 0.0
    assert asked.note_death(1, 1600.0) == 1.0


def test_time_that_no_worker_was_ready_in_heals_nothing() -> None:
    asked = policy()
    asked.note_death(1, 1.0, ready_s=0.0)

    assert asked.note_death(1, 10_000.0) == 1.0


def test_one_death_more_than_the_budget_allows_within_the_window_ends_it() -> None:
    asked = policy(BUDGET)

    assert None not in [asked.note_death(1, at_s) for at_s in (0.0, 60.0, 120.0, 180.0, 240.0)]
    assert asked.note_death(1, 300.0) is None


def test_deaths_that_the_window_has_left_behind_cost_nothing() -> None:
    asked = policy(BUDGET)

    assert None not in [asked.note_death(1, at_s) for at_s in (0.0, 60.0, 120.0, 180.0, 240.0, 300.1)]


@pytest.mark.parametrize(("weight", "allowed"), [(1, 5), (2, 2), (3, 1), (6, 0), (0, 50)])
def test_a_heavier_death_spends_more_of_the_budget(weight: int, allowed: int) -> None:
    asked = policy(BUDGET)
    waits = [asked.note_death(weight, 0.0) for _ in range(50)]

    assert [wait is not None for wait in waits] == [True] * allowed + [False] * (50 - allowed)


def test_a_death_that_weighs_nothing_is_followed_at_once_and_changes_no_wait() -> None:
    asked = policy()
    asked.note_death(1, 0.0)
    for at_s in range(20):
        assert asked.note_death(0, at_s + 0.5, ready_s=float(at_s)) == 0.0
    assert asked.note_death(1, 30.0) == 1.0


def test_deaths_that_weigh_nothing_are_slowed_down_when_no_worker_gets_ready() -> None:
    asked = policy()

    assert [asked.note_death(0, 0.0) for _ in range(4)] == [0.0, 1.0, 2.0, 4.0]


def test_asked_for_by_hand_it_starts_afresh() -> None:
    asked = policy(BUDGET)
    while asked.note_death(1, 0.0) is not None:
        pass
    asked.forgive()

    assert [asked.note_death(1, 0.0) for _ in range(6)] == [0.0, 1.0, 2.0, 4.0, 8.0, None]


@given(st.integers(0, 10**6))
def test_no_wait_is_ever_over_the_bound(failures: int) -> None:
    assert 0.0 <= policy().delay_s(failures) <= 60.0
