"""A worker that leaks is replaced; one that only works is not."""

import itertools
import math
from collections.abc import Callable, Iterator

import pytest

from mlxsup.config.schema import Recovery
from mlxsup.supervisor.recovery.memory_truth import MemorySample
from mlxsup.supervisor.recovery.recycling import RecyclePolicy

GB = 10**9
HOUR_S = 3600
BASE = 8 * GB
# 8 heads of 128, 32 layers, keys and values of 2 bytes.
TOKEN_BYTES = 131_072
INTERVAL_S = 21_600.0


def recycled_at_s(resident: Callable[[int], float], hours: int, *, replace: bool = True) -> Iterator[int]:
    """The seconds at which it is recycled, for a bound of 1 GB an hour; each time another worker begins as the first did."""
    policy = RecyclePolicy(
        Recovery(leak_bytes_per_hour_max=GB, leak_window_s=float(HOUR_S), leak_recycle_interval_s=INTERVAL_S)
    )
    born_s = 0
    policy.note_ready(0.0)
    for second in range(hours * HOUR_S):
        sample = MemorySample(float(second), int(resident(second - born_s)), 10 * GB)
        if policy.after_sample(sample, float(second)):
            yield second
            if replace:
                born_s = second
                policy.note_ready(float(second))


def one_long_text(second: int) -> float:
    """2,400 tokens at 20 a second, whose cache is freed then."""
    return BASE + (20 * second * TOKEN_BYTES if second <= 120 else 0)


def texts_in_turn(second: int) -> float:
    """One after the other, of 400 seconds each."""
    return BASE + 20 * (second % 400) * TOKEN_BYTES


def noise(second: int) -> float:
    return BASE + 40e6 * math.sin(second / 75)


@pytest.mark.parametrize("resident", [one_long_text, texts_in_turn, noise])
def test_a_worker_that_only_works_is_never_recycled(resident: Callable[[int], float]) -> None:
    assert list(recycled_at_s(resident, 24)) == []


@pytest.mark.parametrize("minute", range(0, 150, 5))
def test_a_cache_that_fills_once_is_no_leak_whenever_it_does(minute: int) -> None:
    assert list(recycled_at_s(lambda s: BASE + 10 * GB * min(1.0, max(0.0, s / 60 - minute)), 5)) == []


@pytest.mark.parametrize("working", [one_long_text, noise])
def test_a_worker_that_grows_all_the_time_is_recycled_once_a_window_has_shown_it(
    working: Callable[[int], float],
) -> None:
    first = next(recycled_at_s(lambda s: working(s) + 1.5 * GB * s / HOUR_S, 3))

    assert HOUR_S <= first <= 1.5 * HOUR_S


def test_a_worker_that_grows_less_than_the_bound_is_kept() -> None:
    assert list(recycled_at_s(lambda s: noise(s) + 0.7 * GB * s / HOUR_S, 24)) == []


def test_leaks_recycle_no_more_often_than_the_interval() -> None:
    moments = list(recycled_at_s(lambda s: BASE + 5 * GB * s / HOUR_S, 24))

    assert len(moments) == 4
    assert all(later - earlier >= INTERVAL_S for earlier, later in itertools.pairwise(moments))


def test_a_leak_is_said_again_until_another_worker_serves() -> None:
    moments = list(recycled_at_s(lambda s: BASE + 5 * GB * s / HOUR_S, 2, replace=False))

    assert moments == list(range(moments[0], 2 * HOUR_S))
