import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxsup.config.schema import Qos, Slo
from mlxsup.supervisor.qos.burn import BurnMeter
from mlxsup.supervisor.qos.objective import Kind, Objective, objectives, of_outcome, of_rate, of_seconds

QOS = Qos()
TTFT = Objective(Kind.TTFT, 2.0, 0.05)
GOOD, BAD = of_seconds(1.0), of_seconds(3.0)


def meter(*values: float, objective: Objective = TTFT, from_s: float = 0.0, to_s: float = 60.0) -> BurnMeter:
    """The values spread evenly over that time."""
    found = BurnMeter(objective, QOS)
    record(found, *values, from_s=from_s, to_s=to_s)
    return found


def record(found: BurnMeter, *values: float, from_s: float, to_s: float) -> None:
    for number, value in enumerate(values):
        found.record(value, from_s + (to_s - from_s) * number / len(values))


def test_a_burn_rate_is_the_bad_share_in_budgets() -> None:
    burn = meter(*[GOOD] * 18, *[BAD] * 2, from_s=10.0).read(59.0)
    assert [burn.short, burn.long] == pytest.approx([2.0, 2.0])
    assert burn.samples == 20


def test_an_objective_that_burns_in_both_windows_is_broken_and_one_within_its_budget_is_calm() -> None:
    assert meter(*[GOOD] * 14, *[BAD] * 6).read(59.0).broken
    within = meter(*[GOOD] * 19, BAD).read(59.0)
    assert (within.broken, within.calm) == (False, True)


def test_between_the_bound_and_the_hysteresis_it_is_neither_broken_nor_calm() -> None:
    burn = meter(*[GOOD] * 80, *[BAD] * 20).read(59.0)
    assert burn.short == pytest.approx(4.0)
    assert (burn.broken, burn.calm) == (False, False)


def test_what_is_over_no_longer_breaks_it_though_the_long_window_still_burns() -> None:
    found = meter(*[BAD] * 100, to_s=60.0)
    record(found, *[GOOD] * 20, from_s=61.0, to_s=130.0)
    burn = found.read(130.0)
    assert burn.short == 0.0
    assert burn.long >= QOS.burn_rate_max
    assert (burn.broken, burn.calm) == (False, False)


def test_a_moment_that_is_bad_within_a_long_good_time_does_not_break_it() -> None:
    found = meter(*[GOOD] * 540, to_s=540.0)
    record(found, *[BAD] * 60, from_s=540.0, to_s=590.0)
    burn = found.read(590.0)
    assert burn.short >= QOS.burn_rate_max
    assert not burn.broken


@pytest.mark.parametrize("bad", [1, 2])
@given(good=st.integers(0, 60))
def test_one_or_two_bad_requests_break_nothing_however_few_others_there_are(bad: int, good: int) -> None:
    errors = Objective(Kind.ERRORS, 0.01, 0.01)
    values = [of_outcome(bad=number < bad) for number in range(bad + good)]
    assert not meter(*values, objective=errors).read(59.0).broken


@given(bad=st.integers(0, QOS.samples_min - 1))
def test_fewer_requests_than_the_minimum_break_nothing_however_bad_they_are(bad: int) -> None:
    assert not meter(*[BAD] * bad).read(59.0).broken
    assert meter(*[BAD] * QOS.samples_min).read(59.0).broken


def test_of_what_is_measured_once_a_look_a_window_of_looks_is_enough() -> None:
    rate = Objective(Kind.THROUGHPUT, 10.0, 0.05)
    demanding = Qos(samples_min=1000)
    for looks, broken in ((8, False), (9, True)):
        found = BurnMeter(rate, demanding)
        for look in range(looks):
            found.record(of_rate(5, 5.0), look * 5.0)
        assert found.read(looks * 5.0).broken is broken


def test_where_nothing_was_asked_for_nothing_burns() -> None:
    burn = BurnMeter(TTFT, QOS).read(100.0)
    assert (burn.short, burn.long, burn.figure, burn.broken, burn.calm) == (0.0, 0.0, None, False, True)
    # Also where calm means that nothing at all is bad.
    assert BurnMeter(TTFT, Qos(recover_share=0.0)).read(100.0).calm


def test_a_figure_is_what_all_but_the_budget_got_in_the_unit_of_the_key() -> None:
    assert meter(*[GOOD] * 96, *[BAD] * 4).read(59.0).figure == pytest.approx(1.0, rel=0.03)
    assert meter(*[GOOD] * 90, *[BAD] * 10).read(59.0).figure == pytest.approx(3.0, rel=0.03)
    rate = Objective(Kind.THROUGHPUT, 10.0, 0.05)
    assert meter(of_rate(100, 5.0), objective=rate).read(59.0).figure == pytest.approx(20.0, rel=0.03)
    assert meter(of_rate(0, 5.0), objective=rate).read(59.0).figure == 0.0
    errors = Objective(Kind.ERRORS, 0.01, 0.01)
    values = [of_outcome(bad=number == 0) for number in range(8)]
    assert meter(*values, objective=errors).read(59.0).figure == 0.125


def test_more_tokens_a_second_than_the_least_are_good_and_fewer_are_bad() -> None:
    rate = Objective(Kind.THROUGHPUT, 10.0, 0.05)
    assert meter(*[of_rate(60, 5.0)] * 12, objective=rate).read(59.0).short == 0.0
    assert meter(*[of_rate(40, 5.0)] * 12, objective=rate).read(59.0).short == pytest.approx(20.0)
    assert meter(*[of_rate(0, 5.0)] * 12, objective=rate).read(59.0).broken


def test_what_came_since_a_mark_is_told_by_itself() -> None:
    found = meter(*[BAD] * 10)
    found.mark()
    assert found.figure_since_mark() is None
    found.record(GOOD, 60.0)
    assert found.figure_since_mark() == pytest.approx(1.0, rel=0.03)


def test_a_table_gives_an_objective_for_each_bound_that_it_sets_with_its_budget() -> None:
    slo = Slo(ttft_s=1.0, error_share_max=0.02, tokens_per_s_min=5.0, target_share=0.9)
    found = objectives(slo)
    assert [(objective.kind, objective.limit) for objective in found] == [
        *((Kind.TTFT, 1.0), (Kind.ERRORS, 0.02), (Kind.THROUGHPUT, 5.0))
    ]
    assert [objective.budget_share for objective in found] == pytest.approx([0.1, 0.02, 0.1])
