"""The arithmetic of the benchmarks of many streams, of decisions, and of models that take turns in memory."""

from pathlib import Path

import pytest

from mlxsup.protocol.generation import FinishReason, GenerationResult, Timings, Usage
from mlxsup.supervisor.models.folder_check import check_folder
from scripts.benchmarks.crowd import Heard
from scripts.benchmarks.decisions import Cost, growths
from scripts.benchmarks.null_model import load_null_weights, make_null_model
from scripts.benchmarks.streams import Look, StreamsFigures, StreamsSizes, evaluate
from scripts.benchmarks.swapping import budget_for_two, plain_lru_loads

MS = 1_000_000
SIZES = StreamsSizes(models=1, streams=2, connections=1, tokens_per_s=1.0, settle_s=1.0, seconds=1.0)


def _heard(tokens: int, *deltas: tuple[int, str]) -> Heard:
    result = GenerationResult(
        text="",
        finish_reason=FinishReason.CANCELLED,
        usage=Usage(prompt_tokens=1, completion_tokens=tokens),
        timings=Timings(queue_ms=0, ttft_ms=None, total_ms=0, tokens_per_second=0),
        worker=None,
    )
    return Heard(list(deltas), result)


def _look(moment_ms: int, *, supervisor_s: float = 0.0, grown_bytes: int = 0) -> Look:
    """The machine is busy with two cores all the time, one of them the client's."""
    return Look(
        moment_ns=moment_ms * MS,
        supervisor_s=supervisor_s,
        workers_s=supervisor_s / 2,
        client_s=moment_ms / 1000,
        machine_s=2 * moment_ms / 1000,
        grown_bytes=grown_bytes,
    )


def _evaluate(*heard: Heard) -> StreamsFigures:
    began = _look(10, grown_bytes=4000)
    return evaluate(SIZES, list(heard), began, _look(1010, supervisor_s=0.5, grown_bytes=10_000))


def test_a_tokens_age_is_from_its_making_to_the_reading_of_its_delta_also_when_several_came_in_one() -> None:
    first = _heard(3, (6 * MS, f"{5 * MS} "), (24 * MS, f"{20 * MS} {22 * MS} "))
    second = _heard(2, (2 * MS, f"{1 * MS} "), (31 * MS, f"{30 * MS} "))

    found = _evaluate(first, second)

    # Of the three that were made between the two looks: 4, 2 and 1 ms.
    assert (found.tokens, found.p50_ms, found.max_ms) == (3, 2.0, 4.0)
    assert found.lost_tokens == 0
    assert found.stream_kb == 5.0
    assert (found.supervisor_share, found.workers_share) == (0.5, 0.25)
    assert found.others_share == pytest.approx(0.25)
    assert found.token_us == pytest.approx(500_000 / 3)


def test_tokens_that_the_result_counts_and_no_delta_brought_are_lost() -> None:
    stream = _heard(3, (6 * MS, f"{5 * MS} "), (24 * MS, f"{20 * MS} "))

    assert _evaluate(stream).lost_tokens == 1


def test_streams_that_begin_too_late_are_no_crowd() -> None:
    with pytest.raises(RuntimeError, match="longer to settle"):
        _evaluate(_heard(1, (24 * MS, f"{20 * MS} ")))


def test_a_cost_that_grows_as_the_logarithm_is_found_as_such() -> None:
    (growth,) = growths([Cost("a", 2**number, 100.0 * number, 3.0 * number) for number in (4, 6, 10)])

    assert growth.doubling_ns == pytest.approx(100.0)
    assert growth.base_ns == pytest.approx(0.0, abs=1e-6)
    assert (growth.ns_over_log, growth.steps_over_log) == pytest.approx((1.0, 1.0))


def test_a_cost_that_grows_as_the_queue_is_found_out() -> None:
    time_constant, steps_constant = growths(
        [Cost("a", number, 7.0, 1.0 * number) for number in (10, 1000)]
        + [Cost("b", number, 1.0 * number, 7.0) for number in (10, 1000)]
    )

    assert (time_constant.ns_over_log, time_constant.steps_over_log) == pytest.approx((1 / 3, 100 / 3))
    assert (steps_constant.ns_over_log, steps_constant.steps_over_log) == pytest.approx((100 / 3, 1 / 3))


@pytest.mark.parametrize(
    ("arrivals", "loads"), [("abcabc", 6), ("aabbcc", 3), ("ababab", 2), ("abacab", 4), ("", 0)]
)
def test_plain_lru_keeps_the_two_that_were_used_last(arrivals: str, loads: int) -> None:
    assert plain_lru_loads(arrivals, 2) == loads


def test_a_budget_for_two_is_too_small_for_three_whichever_estimate_is_right() -> None:
    budget_bytes = budget_for_two(120, 100)

    assert 2 * 120 <= budget_bytes < 3 * 100
    with pytest.raises(RuntimeError, match="thought to need 150"):
        budget_for_two(150, 100)


def test_a_model_that_computes_nothing_passes_for_one_and_takes_the_memory_of_its_weights(
    tmp_path: Path,
) -> None:
    folder = make_null_model(tmp_path / "model", 1_000_000, load_s=0.0)
    reports: list[tuple[str, int, int]] = []

    weights = load_null_weights(folder, lambda *report: reports.append(report))

    assert check_folder(folder).float32_bytes == 1_000_000
    assert weights is not None
    assert len(weights) >= 1_000_000
    assert reports[-1] == ("weights", len(weights), len(weights))
    assert load_null_weights(tmp_path, lambda *_: None) is None
