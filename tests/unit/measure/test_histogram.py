import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxsup.supervisor.measure.histogram import Histogram, is_above

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


@given(st.lists(st.lists(st.floats(0.0, 1e7), max_size=50), max_size=6), st.floats(0.001, 1e7))
def test_histograms_that_are_merged_are_one_of_all_their_values(
    parts: list[list[float]], bound: float
) -> None:
    merged = Histogram()
    for values in parts:
        merged.merge(fill(values))
    at_once = fill([value for values in parts for value in values])

    assert vars(merged) == vars(at_once)
    assert merged.share_above(bound) == at_once.share_above(bound)
    assert [merged.quantile(q) for q in (0.01, 0.5, 0.99, 1.0)] == [
        at_once.quantile(q) for q in (0.01, 0.5, 0.99, 1.0)
    ]


def test_one_that_is_merged_into_another_stays_as_it_is() -> None:
    part = fill([1.0, 2.0])
    whole = fill([3.0])
    whole.merge(part)
    whole.record(4.0)
    assert vars(part) == vars(fill([1.0, 2.0]))


@given(VALUES, st.floats(0.001, 1e7))
def test_the_share_above_a_bound_is_exact_but_for_values_within_4_percent_of_it(
    values: list[float], bound: float
) -> None:
    share = fill(values).share_above(bound) * len(values)
    assert sum(value > bound * 1.041 for value in values) - 1e-6 <= share
    assert share <= sum(value > bound for value in values) + 1e-6


@given(VALUES, st.floats(0.001, 1e7))
def test_a_value_is_above_a_bound_where_the_histogram_counts_it_so(values: list[float], bound: float) -> None:
    assert fill(values).count_above(bound) == sum(is_above(value, bound) for value in values)
    assert not is_above(bound, bound)


def test_of_nothing_no_share_is_above_anything() -> None:
    assert Histogram().share_above(1.0) == 0.0
