"""Whether memory came back is said with numbers, and only when it matters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxsup.supervisor.recovery.memory_truth import (
    MemoryLimits,
    MemorySample,
    Stranded,
    judge_memory,
    leak_bytes_per_hour,
)

GB = 10**9
LIMITS = MemoryLimits(stranded_share=0.5, headroom_bytes=GB)


def judge(resident: int, before: int, after: int) -> Stranded | None:
    return judge_memory(MemorySample(0.0, resident, before), after, LIMITS)


def test_memory_that_did_not_come_back_and_is_missing_now_refuses_the_next_worker() -> None:
    stranded = judge(20 * GB, before=4 * GB, after=5 * GB)

    assert stranded == Stranded(missing_bytes=19 * GB, available_bytes=5 * GB, needed_bytes=21 * GB)
    assert all(number in str(stranded) for number in ("19000 MB", "5000 MB", "21000 MB"))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(4, 24, id="all came back"),
        pytest.param(4, 14, id="half came back: the bound itself"),
        pytest.param(100, 60, id="much is missing and enough is left"),
        pytest.param(4, 21, id="as much as is needed is left"),
    ],
)
def test_where_enough_came_back_or_is_left_the_next_may_start(before: int, after: int) -> None:
    assert judge(20 * GB, before * GB, after * GB) is None


def test_nothing_is_held_against_a_machine_of_which_nothing_is_known() -> None:
    assert judge_memory(None, 0, LIMITS) is None


@given(st.integers(1, 10**12), st.integers(0, 10**12))
def test_a_worker_whose_memory_all_came_back_never_strands_any(resident: int, before: int) -> None:
    assert judge(resident, before, before + resident) is None


@given(st.floats(-1e9, 1e9), st.integers(2, 200))
def test_the_slope_of_a_straight_line_is_its_own(slope: float, count: int) -> None:
    samples = [MemorySample(float(s), round(1e12 + slope / 3600 * s), 0) for s in range(count)]

    assert leak_bytes_per_hour(samples) == pytest.approx(slope, rel=0.01, abs=4000)


@pytest.mark.parametrize("at", range(9))
def test_one_sample_that_is_far_off_is_no_slope(at: int) -> None:
    samples = [MemorySample(float(s), GB if s == at else 2 * GB, 0) for s in range(9)]

    assert leak_bytes_per_hour(samples) == 0.0


def test_the_slope_of_too_little_is_zero() -> None:
    sample = MemorySample(5.0, 100, 0)

    assert (
        leak_bytes_per_hour([]) == leak_bytes_per_hour([sample]) == leak_bytes_per_hour([sample] * 9) == 0.0
    )
