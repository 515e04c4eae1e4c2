"""What a client makes of requests that it sent: rates, lost ones, and hints held against the truth."""

import itertools
from typing import Any

import pytest

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import FinishReason, GenerationResult, Timings, Usage
from scripts.benchmarks.catalogue import Catalogue, draw_orders
from scripts.benchmarks.hints import Hint, check_hints, summarize
from scripts.benchmarks.overload import evaluate, goodput_ratios
from scripts.benchmarks.tenants import summarize_service
from scripts.benchmarks.traffic import Asked, Order, capacity_of, faults, poisson, regular, tokens_per_s
from scripts.benchmarks.workload import ModelWorkload, NullWorkload


def _result(text: str, tokens: int, queue_ms: float = 0.0) -> GenerationResult:
    return GenerationResult(
        text=text,
        finish_reason=FinishReason.LENGTH,
        usage=Usage(prompt_tokens=3, completion_tokens=tokens),
        timings=Timings(queue_ms=queue_ms, ttft_ms=None, total_ms=0, tokens_per_second=0),
        worker=None,
    )


def _answered(
    sent_s: float, ended_s: float, *, tokens: int = 10, queue_ms: float = 0.0, **params: Any
) -> Asked:
    """Half of its text came in the middle, half at its end."""
    middle_s = (sent_s + ended_s) / 2
    return Asked(
        Order("generate", params),
        sent_s,
        [(middle_s, 2), (ended_s, 2)],
        ended_s,
        result=_result("text", tokens, queue_ms),
    )


def _refused(
    sent_s: float,
    retry_after_ms: int | None,
    *,
    answered_s: float = 0.0,
    message: str = "the queue of this model is full (64 requests wait); try again later",
) -> Asked:
    error = RpcError(ErrorKind.OVERLOADED, message, retry_after_ms=retry_after_ms)
    return Asked(Order("generate", {"deadline_ms": 1}), sent_s, ended_s=sent_s + answered_s, error=error)


def test_tokens_count_where_their_text_came() -> None:
    asked = _answered(0.0, 4.0, tokens=10)

    assert asked.tokens_between(0.0, 2.0) == 0
    assert asked.tokens_between(2.0, 4.0) == 5
    assert asked.tokens_between(0.0, 4.1) == 10


def test_a_rate_is_that_of_complete_answers_between_two_moments() -> None:
    assert tokens_per_s([_answered(0.0, 4.0), _answered(2.0, 6.0), _refused(1.0, 5)], 2.0, 5.0) == 5.0


def test_capacity_in_requests_is_the_rate_over_the_mean_answer() -> None:
    capacity = capacity_of([_answered(0, 4, tokens=10, queue_ms=1000), _answered(0, 2, tokens=30)], 40.0)

    assert (capacity.tokens_per_s, capacity.requests_per_s, capacity.service_s) == (40.0, 2.0, 2.0)


def test_a_refusal_is_no_fault_and_any_other_error_is() -> None:
    lost = Asked(Order("generate", {}), 0.0, fault="worker_died: gone")

    assert faults([_answered(0, 1), _refused(0, 5), lost]) == ["worker_died: gone"]


def test_a_text_other_than_the_expected_one_differs_and_one_that_nobody_expected_does_not() -> None:
    assert Asked(Order("generate", {}, "texts"), 0.0, result=_result("text", 1)).differs
    assert not Asked(Order("generate", {}, "text"), 0.0, result=_result("text", 1)).differs
    assert not Asked(Order("generate", {}), 0.0, result=_result("text", 1)).differs


def test_arrivals_at_random_have_the_rate_that_was_asked_for() -> None:
    gaps_s = list(itertools.islice(poisson(4.0, seed=1), 10_000))

    assert sum(gaps_s) == pytest.approx(2500, rel=0.05)
    assert gaps_s != list(itertools.islice(poisson(4.0, seed=2), 10_000))


def test_regular_arrivals_begin_at_once() -> None:
    assert list(itertools.islice(regular(4.0), 3)) == [0.0, 0.25, 0.25]


def test_a_hint_is_held_against_the_ends_of_all_that_was_accepted_before_it() -> None:
    all_asked = [
        _answered(0.0, 6.0, queue_ms=3000),
        _answered(0.5, 5.0, queue_ms=1000),
        _refused(1.0, 3900),
        # Accepted after it: of no concern to the refusal above, but to the one below.
        _answered(1.5, 9.0, queue_ms=6500),
        _refused(2.0, 2000),
    ]

    hints = check_hints(all_asked, "full")

    assert hints == [Hint(3900, 5000.0, begun_ms=2000.0), Hint(2000, 7000.0, begun_ms=6000.0)]
    assert [hint.is_true for hint in hints] == [True, False]
    assert [hint.is_of_begins for hint in hints] == [True, False]
    assert check_hints(all_asked, "late") == []


def test_one_that_was_put_out_of_the_queue_was_ahead_until_then_and_is_no_refusal() -> None:
    displaced = _refused(
        0.0, 700, answered_s=5.0, message="the queue is full, and a more urgent request came"
    )

    assert check_hints([displaced, _refused(1.0, 3999)], "full") == [Hint(3999, 4000.0, 4000.0)]


@pytest.mark.parametrize(
    ("hint_ms", "is_true"), [(None, False), (499, False), (500, True), (2000, True), (2001, False)]
)
def test_a_hint_is_true_within_a_factor_of_two(hint_ms: int | None, is_true: bool) -> None:
    assert Hint(hint_ms, truth_ms=1000.0, begun_ms=0.0).is_true is is_true
    assert Hint(hint_ms, truth_ms=0.0, begun_ms=1000.0).is_of_begins is is_true


def test_hints_are_summarized_with_those_that_are_missing_as_untrue() -> None:
    given = [1000, None, 3000, 600]

    found = summarize([Hint(hint_ms, truth_ms=1000.0, begun_ms=300.0) for hint_ms in given])

    assert (found.count, found.true_share, found.of_begins_share, found.ratio_p50) == (4, 0.5, 0.25, 1.0)


def test_goodput_counts_only_what_was_complete_within_its_deadline() -> None:
    in_time = _answered(1.0, 3.0, tokens=10, deadline_ms=2000)
    too_late = _answered(1.0, 5.0, tokens=10, deadline_ms=2000)
    cut_off = Asked(
        Order("generate", {"deadline_ms": 2000}),
        1.0,
        ended_s=3.0,
        error=RpcError(ErrorKind.DEADLINE_EXCEEDED, "late", tokens_delivered=4),
    )

    level = evaluate(2.0, [in_time, too_late, cut_off, _refused(1.0, 5, answered_s=0.004)], 0.0, 10.0)

    assert (level.goodput, level.wasted) == (1.0, 1.4)
    assert (level.sent, level.completed, level.late, level.displaced) == (4, 1, 2, 0)
    assert level.refused == {"full": 1, "late": 0}
    assert level.refusal_p50_ms == pytest.approx(4.0)


def test_goodput_is_held_against_the_first_level_of_the_same_round() -> None:
    def level(level: float, tokens: int) -> Any:
        return evaluate(level, [_answered(0, 1, tokens=tokens, deadline_ms=2000)], 0.0, 2.0)

    ratios = goodput_ratios([[level(1, 10), level(5, 5)], [level(1, 100), level(5, 100)]])

    assert {times: (ratio.min, ratio.max) for times, ratio in ratios.items()} == {5: (0.5, 1.0)}


def test_a_clients_service_leaves_out_what_was_refused() -> None:
    found = summarize_service([_answered(0.0, 4.0, queue_ms=500), _answered(0.0, 2.0), _refused(0.0, 5)])

    assert (found.answered, found.refused, found.queue_p95_ms) == (2, 1, 500)
    assert (found.ttft_p50_ms, found.ttft_p95_ms) == (1000, 2000)
    assert (found.total_p50_ms, found.total_p95_ms) == (2000, 4000)


@pytest.mark.parametrize("workload", [ModelWorkload(), NullWorkload()])
def test_the_same_seed_draws_the_same_orders_and_each_has_its_own(workload: Any) -> None:
    first = draw_orders(workload, 1, 8, (50, 150), (64, 128))

    assert first == draw_orders(workload, 1, 8, (50, 150), (64, 128))
    assert [order.params["seed"] for order in first] == list(range(8))
    assert len({order.params["prompt"] for order in first}) == 8
    assert {64 <= order.params["max_tokens"] <= 128 for order in first} == {True}


def test_each_order_of_a_catalogue_is_drawn_once_before_any_comes_again() -> None:
    orders = draw_orders(ModelWorkload(), 1, 5, (50, 60), (8, 8))
    drawn = Catalogue(orders, left_out=0).drawn(seed=1, client="one")

    once = [order.params for order in itertools.islice(drawn, 5)]

    assert sorted(params["seed"] for params in once) == list(range(5))
    assert {params["client"] for params in once} == {"one"}
