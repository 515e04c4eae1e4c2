"""The arithmetic of the benchmarks."""

import pytest

from mlxsup.protocol.generation import FinishReason, GenerationResult, Timings, Usage
from scripts.benchmarks.figures import Spread, paired_ratio, quantile
from scripts.benchmarks.load import Answer, Run
from scripts.benchmarks.mlx_lm_messages import TextsDone
from scripts.benchmarks.null_engine import flood_text
from scripts.benchmarks.prompts import make_prompts
from scripts.benchmarks.report import Goal, Table
from scripts.benchmarks.stack_against_mlx_lm import Pair, compare, make_pair


def test_a_spread_is_the_median_and_both_ends() -> None:
    assert Spread.of([3.0, 1.0, 2.0, 10.0]) == Spread(median=2.5, min=1.0, max=10.0)


def test_a_ratio_is_taken_pair_by_pair_and_not_of_the_medians() -> None:
    # The machine was slower and slower; each pair says one half.
    assert paired_ratio([50.0, 20.0, 5.0], [100.0, 40.0, 10.0]) == Spread(0.5, 0.5, 0.5)


def test_runs_without_a_partner_are_refused() -> None:
    with pytest.raises(ValueError, match=r"longer|shorter"):
        paired_ratio([1.0, 2.0], [1.0])


@pytest.mark.parametrize(("q", "expected"), [(0.0, 1), (0.5, 50), (0.99, 99), (1.0, 100)])
def test_a_quantile_is_the_smallest_value_that_the_share_does_not_exceed(q: float, expected: int) -> None:
    assert expected == quantile(list(range(100, 0, -1)), q)


def test_the_quantile_of_one_value_is_that_value() -> None:
    assert quantile([7.0], 0.99) == 7.0


def _run(seconds: float, texts: list[str], tokens: int) -> Run:
    def answer(text: str) -> Answer:
        result = GenerationResult(
            text=text,
            finish_reason=FinishReason.LENGTH,
            usage=Usage(prompt_tokens=3, completion_tokens=tokens),
            timings=Timings(queue_ms=0, ttft_ms=None, total_ms=0, tokens_per_second=0),
            worker=None,
        )
        return Answer(text, 1, result)

    return Run(seconds, [answer(text) for text in texts])


def test_a_rate_is_all_streams_tokens_over_the_whole_span() -> None:
    assert _run(4.0, ["a", "b"], 10).tokens_per_s == 5.0


def test_a_pair_has_both_rates_and_counts_the_texts_that_differ() -> None:
    pair = make_pair(TextsDone(1.0, 20, ["a", "b"]), _run(2.0, ["a", "c"], 10))

    assert pair == Pair(tokens=20, mlx_lm_s=1.0, stack_s=2.0, texts_differ=1)
    assert (pair.mlx_lm_rate, pair.stack_rate) == (20.0, 10.0)


def test_sides_that_gave_different_numbers_of_tokens_are_not_compared() -> None:
    with pytest.raises(RuntimeError, match="19 tokens, the stack 20"):
        make_pair(TextsDone(1.0, 19, ["a", "b"]), _run(2.0, ["a", "b"], 10))


def test_a_comparison_is_the_stack_over_mlx_lm() -> None:
    found = compare(2, [Pair(10, 1.0, 2.0, 0), Pair(10, 2.0, 2.0, 1), Pair(10, 1.0, 1.25, 0)])

    assert found.ratio == Spread(median=0.8, min=0.5, max=1.0)
    assert found.mlx_lm == Spread(median=10.0, min=5.0, max=10.0)
    assert found.stack == Spread(median=5.0, min=5.0, max=8.0)
    assert found.texts_differ == 1


@pytest.mark.parametrize(
    ("value", "at_least", "met"),
    [(1.0, True, True), (0.9, True, False), (1.0, False, True), (1.1, False, False)],
)
def test_a_goal_is_met_up_to_its_bound(value: float, at_least: bool, met: bool) -> None:
    assert Goal("x", value, 1.0, at_least=at_least).met is met


def test_no_two_prompts_are_the_same() -> None:
    assert len(set(make_prompts(100))) == 100


def test_a_flood_of_another_seed_is_another_text() -> None:
    assert flood_text(1, 50) != flood_text(2, 50)


def test_a_table_has_no_blanks_at_the_end_of_its_lines() -> None:
    shown = str(Table("Title", ("one long heading",), [("a",), ("b",)]))
    assert shown.splitlines() == ["Title", "  one long heading", "  a", "  b"]
