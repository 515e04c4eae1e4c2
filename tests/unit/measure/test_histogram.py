import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxsup.supervisor.measure.histogram import Histogram

VALUES = st.lists(st.floats(0.001, 1e7), min_size=1, max_size=200)


def fill(values: list[float]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


@given(VALUES, st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]))
def test_a_quantile_is_within_2_percent_of_the_true_one(values: list[float], q: float) -> None:
    truth = sorted(values)[math.ceil(q * len(values)) - 1]

    assert fill(values).quantile(q) == pytest.approx(truth, rel=0.021)


@given(VALUES)
def test_count_and_largest_are_exact(values: list[float]) -> None:
    histogram = fill(values)

    assert (histogram.count, histogram.max) == (len(values), max(values))


def test_an_empty_one_and_values_beyond_its_ends_do_no_harm() -> None:
    assert Histogram().quantile(0.5) == 0.0
    assert fill([0.0, 1e30]).quantile(1.0) > 0
