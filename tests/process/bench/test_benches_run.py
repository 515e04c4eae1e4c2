"""Each benchmark runs from end to end with tiny sizes, and says what it should in the shape that it should."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mlxsup import native

_BENCHMARKS = Path(__file__).resolve().parents[3] / "scripts" / "benchmarks"
_RUN_S = 300.0

pytestmark = pytest.mark.slow


def _bench(*arguments: str, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-P", str(_BENCHMARKS), *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=_RUN_S,
    )
    assert done.returncode == status, done.stderr
    return done.stdout


def _bench_json(*arguments: str) -> dict[str, Any]:
    report = msgspec.json.decode(_bench(*arguments, "--json"), type=dict[str, Any])
    assert report["bench"] == arguments[0]
    assert report["machine"]["mlx"]
    sections: dict[str, Any] = report["sections"]
    return sections


def test_overhead_against_mlx_lm_gives_equal_texts_on_both_sides() -> None:
    sections = _bench_json(
        "overhead",
        "--part",
        "model",
        "--rounds",
        "1",
        "--streams",
        "1",
        "--streams",
        "3",
        "--max-tokens",
        "4",
    )

    comparisons = sections["against_mlx_lm"]["figures"]["comparisons"]
    assert [(found["streams"], found["pairs"][0]["tokens"]) for found in comparisons] == [(1, 4), (3, 12)]
    assert all(found["pairs"][0]["texts_differ"] == 0 for found in comparisons)
    for found in comparisons:
        (pair,) = found["pairs"]
        assert found["ratio"]["median"] == pytest.approx(pair["mlx_lm_s"] / pair["stack_s"])


def test_overhead_of_nothing_counts_every_token_and_times_lone_ones() -> None:
    sections = _bench_json(
        *("overhead", "--part", "null", "--rounds", "1"),
        *("--null-streams", "3", "--null-tokens", "500", "--paced-tokens", "5"),
    )

    figures = sections["null_engine"]["figures"]
    (flood,) = figures["rounds"]
    assert flood["tokens"] == 1500
    assert flood["tokens_per_s"] == pytest.approx(1500 / flood["seconds"])
    assert 3 <= flood["deltas"] <= 1500
    assert [found["tokens"] for found in figures["latencies"]] == [5, 5]
    assert all(0 < found["median_ms"] <= found["p99_ms"] for found in figures["latencies"])


def test_a_missed_goal_is_a_failure_only_with_check() -> None:
    sizes = ("overhead", "--part", "null", "--rounds", "1", "--null-streams", "1", "--null-tokens", "1")

    assert "MISSED tokens/s without computing" in _bench(*sizes, "--paced-tokens", "1")
    _bench(*sizes, "--paced-tokens", "1", "--check", status=1)


@pytest.mark.skipif(
    native.blas_bridge_path() is None, reason="the BLAS bridge was not built on this platform"
)
def test_native_compares_both_sides_of_the_bridge() -> None:
    sections = _bench_json(
        *(
            "native",
            "--rounds",
            "1",
            "--threads",
            "1",
            "--streams",
            "2",
            "--prompt-tokens",
            "8",
            "--steps",
            "2",
        ),
        *("--prompt-tokens-without", "2", "--steps-without", "1"),
    )

    gains = sections["blas_bridge"]["figures"]["gains"]
    assert [gain["what"] for gain in gains] == ["prefill", "decode"]
    for gain in gains:
        assert gain["ratio"]["median"] == pytest.approx(gain["bridged"]["median"] / gain["without"]["median"])


def test_idle_looks_at_a_supervisor_without_a_model_with_one_and_with_one_that_dies_until_it_is_given_up() -> (
    None
):
    sections = _bench_json("idle", "--seconds", "0.5", "--crash-loops", "1")

    before, loaded = sections["idle"]["figures"]
    assert before["worker_resident_mb"] is None
    assert loaded["worker_resident_mb"] > before["resident_mb"] > 1
    (loop,) = sections["crash_loops"]["figures"]
    assert loop["deaths"] == 6
    assert 0 < loop["processor_s"] < loop["seconds"]
    assert loop["processor_percent"] == pytest.approx(100 * loop["processor_s"] / loop["seconds"])
    (goal,) = sections["crash_loops"]["goals"]
    assert goal["value"] == pytest.approx(loop["processor_percent"])


def test_mixed_has_both_kinds_of_requests_alone_and_together_and_loses_none() -> None:
    sections = _bench_json(
        *("mixed", "--part", "null", "--rounds", "1", "--texts", "3", "--batch", "4", "--queue", "8"),
        *("--prompt-tokens", "10", "30", "--answer-tokens", "8", "16", "--chat-prompt-tokens", "40"),
        *("--chat-answer-tokens", "4", "--interactive-per-s", "5", "--settle-s", "0.5", "--seconds", "2"),
    )

    figures = sections["mixed_null"]["figures"]
    (round,) = figures["rounds"]
    assert round["idle"]["answered"] >= 5
    assert round["mixed"]["answered"] >= 5
    assert round["idle"]["prompt_tokens"] == 40
    assert round["background_refused"] > 0
    assert min(*round["background_alone"], round["background_mixed"]) > 0
    assert (round["texts_differ"], round["lost"]) == (0, [])
    alone = sum(round["background_alone"]) / 2
    assert figures["background_share"]["median"] == pytest.approx(round["background_mixed"] / alone)


def test_overload_refuses_for_both_reasons_and_holds_every_hint_against_the_truth() -> None:
    sections = _bench_json(
        *("overload", "--part", "null", "--levels", "1", "--levels", "5", "--rounds", "1", "--batch", "4"),
        *("--queue", "8", "--answer-tokens", "8", "--settle-s", "0.5", "--seconds", "2"),
    )

    figures = sections["overload_null"]["figures"]
    ((first, fifth),) = figures["rounds"]
    assert fifth["sent"] > 2 * first["sent"]
    assert all(fifth["refused"][reason] == fifth["hints"][reason]["count"] > 0 for reason in ("full", "late"))
    ended = [fifth["completed"], fifth["late"], fifth["displaced"], *fifth["refused"].values()]
    assert (sum(ended), fifth["lost"]) == (fifth["sent"], [])
    assert figures["ratios"]["5.0"]["median"] == pytest.approx(fifth["goodput"] / first["goodput"])


def test_tenants_compares_the_small_one_beside_the_big_one_with_both_of_its_other_phases() -> None:
    sections = _bench_json(
        *("tenants", "--part", "null", "--rounds", "1", "--batch", "4", "--client-queue", "8"),
        *("--answer-tokens", "8", "--settle-s", "0.5", "--seconds", "2"),
    )

    figures = sections["tenants_null"]["figures"]
    (round,) = figures["rounds"]
    assert round["alone"]["answered"] + round["alone"]["refused"] > 3
    assert round["beside"]["answered"] > 0
    assert round["full_batch"]["answered"] > round["alone"]["answered"]
    assert round["lost"] == []
    for name, other in (("to_alone", round["alone"]), ("to_full_batch", round["full_batch"])):
        ratio = round["beside"]["ttft_p95_ms"] / other["ttft_p95_ms"]
        assert figures[name]["ttft"]["median"] == pytest.approx(ratio)


def test_streams_gets_every_token_of_every_stream_and_times_it() -> None:
    sections = _bench_json(
        *("streams", "--models", "2", "--streams", "6", "--connections", "2", "--tokens-per-s", "20"),
        *("--settle-s", "1", "--seconds", "1"),
    )

    figures = sections["streams"]["figures"]
    assert figures["lost_tokens"] == 0
    assert figures["tokens"] > 6
    assert figures["tokens_a_stream"] > figures["tokens"] / 6
    assert 0 < figures["p50_ms"] <= figures["p99_ms"] <= figures["max_ms"]


def test_decisions_times_every_kind_among_every_number_that_waits() -> None:
    sections = _bench_json(
        *("decisions", "--queued", "32", "--queued", "512", "--rounds", "1", "--decisions", "50"),
    )

    figures = sections["decisions"]["figures"]
    kinds = [growth["kind"] for growth in figures["growths"]]
    assert len(kinds) == 3
    timed = {(cost["kind"], cost["queued"]): cost["nanoseconds"] for cost in figures["costs"]}
    assert set(timed) == {(kind, queued) for kind in kinds for queued in (32, 512)}
    assert min(timed.values()) > 0


def test_swapping_loads_more_often_than_there_are_models_and_disturbs_no_request() -> None:
    sections = _bench_json(
        *("swapping", "--part", "null", "--requests", "9", "--gap-s", "0.2", "--answer-tokens", "4"),
        *("--residency-min-s", "1", "--swap-wait-s", "5", "--weights-mb", "300", "--load-s", "0.2"),
    )

    figures = sections["swapping_null"]["figures"]
    assert figures["lru_loads"] == 9
    assert 3 <= figures["loads"] < 9
    assert (figures["interrupted"], figures["lost"], figures["deaths"]) == (0, [], 0)
    assert 300e6 < figures["peak_bytes"] <= figures["budget_bytes"]


def test_pair_compares_two_models_with_one() -> None:
    sections = _bench_json("pair", "--rounds", "1", "--streams", "2", "--max-tokens", "4")

    figures = sections["pair"]["figures"]
    assert figures["ratio"]["median"] == pytest.approx(figures["two"]["median"] / figures["one"]["median"])


def test_prefix_has_what_was_computed_before_in_memory_and_after_a_kill_on_the_disk() -> None:
    sections = _bench_json(
        *("prefix", "--rounds", "1", "--turns", "2", "--system-tokens", "300", "--turn-tokens", "22"),
        *("--answer-tokens", "4"),
    )

    figures = sections["prefix"]["figures"]
    (warm,), (restarted,) = figures["warm"], figures["restarted"]
    for turn in (warm, restarted):
        # But for its new tokens, and the few of an answer that is not worth a stretch of its own.
        assert turn["prompt_tokens"] - turn["cached_tokens"] <= turn["new_tokens"] + 8
        assert min(turn["ttft_ms"], turn["bare_ms"], turn["short_ms"]) > 0
    assert figures["warm_ratio"]["median"] == pytest.approx(warm["ttft_ms"] / warm["bare_ms"])


def test_chunk_has_the_short_one_wait_for_the_whole_of_the_long_one_only_where_it_is_read_in_one_piece() -> (
    None
):
    sections = _bench_json(
        *("chunk", "--rounds", "1", "--long-tokens", "600", "--short-tokens", "8", "--gap-s", "0.1"),
        *("--answer-tokens", "2", "--stream-tokens", "40"),
    )

    figures = sections["chunk"]["figures"]
    (times,) = figures["rounds"]
    assert min(times.values()) > 0
    assert times["short_beside"] < times["short_in_one_piece"]
    assert times["least_pause"] <= times["pause"]
    ratio = times["short_beside"] / times["short_in_one_piece"]
    assert figures["short_ratio"]["median"] == pytest.approx(ratio)


def test_shared_computes_what_all_prompts_begin_with_once() -> None:
    sections = _bench_json(
        *("shared", "--rounds", "1", "--requests", "3", "--shared-tokens", "90", "--own-tokens", "2"),
    )

    figures = sections["shared"]["figures"]
    assert [work["tokens"] for work in figures["one"]] == [92]
    assert [work["tokens"] for work in figures["all"]] == [92 + 2 + 2]
    assert figures["work_ratio"]["median"] == pytest.approx(96 / 92)
