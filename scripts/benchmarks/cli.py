"""The command line of the benchmarks: what to measure, how much of it, and what to do with the figures."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

FOLDER = Path(__file__).resolve().parent

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def child_command(name: str) -> list[str]:
    """Runs one of the hidden commands below in a process of its own."""
    return [sys.executable, "-P", str(FOLDER), name]


def _common(function: FunctionT) -> FunctionT:
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print one JSON text instead of tables."),
        click.option("--check", is_flag=True, help="Exit with status 1 when a goal is missed."),
        click.option("--seed", default=1, show_default=True, help="Of what is drawn at random."),
    ):
        function = option(function)
    return function


@click.group()
def main() -> None:
    """Measures mlxsup on this machine. Progress goes to stderr, the figures to stdout."""
    # As Ctrl-C: what was started for the measurement ends with it.
    signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))


@main.command()
@_common
@click.option("--rounds", default=5, show_default=True, help="Pairs of runs for each number of streams.")
@click.option("--streams", default=(1, 8, 16), show_default=True, multiple=True, type=click.IntRange(1))
@click.option("--max-tokens", default=64, show_default=True, help="Of each stream's answer.")
@click.option(
    "--threads", type=click.IntRange(1), help="Of BLAS, on both sides. Default: the supervisor's choice."
)
@click.option("--null-streams", default=32, show_default=True, help="Streams of the engine without a model.")
@click.option("--null-tokens", default=32768, show_default=True, help="Of each of them.")
@click.option("--paced-tokens", default=400, show_default=True, help="Lone tokens a round, for the latency.")
@click.option(
    "--part",
    default="both",
    show_default=True,
    type=click.Choice(["both", "model", "null"]),
    help="Against mlx-lm with a real model, or with an engine that computes nothing.",
)
def overhead(as_json: bool, check: bool, seed: int, part: str, **sizes: Any) -> None:
    """What the whole stack costs: against mlx-lm in one process, and around an engine that computes nothing."""
    from scripts.benchmarks.null_stack import NullSizes, measure_null
    from scripts.benchmarks.report import Report
    from scripts.benchmarks.stack_against_mlx_lm import ModelSizes, measure_model

    report = Report("overhead", seed)
    rounds = sizes["rounds"]
    if part in ("both", "model"):
        report.add(
            measure_model(
                ModelSizes(rounds, tuple(sizes["streams"]), sizes["max_tokens"], sizes["threads"]), report.say
            )
        )
    if part in ("both", "null"):
        null = NullSizes(rounds, sizes["null_streams"], sizes["null_tokens"], sizes["paced_tokens"])
        report.add(measure_null(null, seed, report.say))
    report.close(as_json=as_json, check=check)


@main.command()
@_common
@click.option("--rounds", default=3, show_default=True, help="Pairs of processes.")
@click.option("--threads", default=os.cpu_count() or 1, show_default=True, help="Of BLAS: all cores.")
@click.option("--prompt-tokens", default=256, show_default=True, help="Prefilled with the bridge.")
@click.option("--steps", default=32, show_default=True, help="Of decoding, with the bridge.")
@click.option("--streams", default=16, show_default=True, help="Decoded together.")
@click.option("--prompt-tokens-without", default=32, show_default=True, help="Prefilled without the bridge.")
@click.option("--steps-without", default=2, show_default=True, help="Of decoding, without the bridge.")
def native(as_json: bool, check: bool, seed: int, **sizes: int) -> None:
    """MLX's CPU backend with and without the BLAS bridge."""
    from scripts.benchmarks.blas_bridge import BridgeSizes, measure_bridge
    from scripts.benchmarks.report import Report

    report = Report("native", seed)
    report.add(measure_bridge(BridgeSizes(**sizes), report.say))
    report.close(as_json=as_json, check=check)


@main.command()
@_common
@click.option("--seconds", default=30.0, show_default=True, help="How long each state is watched.")
@click.option(
    "--crash-loops",
    default=3,
    type=click.IntRange(0),
    show_default=True,
    help="At the usual pace, until a model is given up.",
)
def idle(as_json: bool, check: bool, seed: int, seconds: float, crash_loops: int) -> None:
    """What a supervisor costs that has nothing useful to do: memory and processor time."""
    from scripts.benchmarks.idle_cost import measure_crash_loops, measure_idle
    from scripts.benchmarks.report import Report

    report = Report("idle", seed)
    report.add(measure_idle(seconds, report.say))
    if crash_loops:
        report.add(measure_crash_loops(crash_loops, report.say))
    report.close(as_json=as_json, check=check)


@main.command()
@_common
@click.option("--models", default=63, show_default=True, help="Each with a worker and a batch of its own.")
@click.option("--streams", default=1000, show_default=True, help="In all.")
@click.option("--connections", default=1, show_default=True, help="Of clients, which share the streams.")
@click.option("--tokens-per-s", default=8.0, show_default=True, help="Of each stream.")
@click.option("--settle-s", default=5.0, show_default=True, help="From the requests to what is measured.")
@click.option("--seconds", default=20.0, show_default=True, help="What is measured.")
def streams(as_json: bool, check: bool, seed: int, **sizes: Any) -> None:
    """A thousand streams at once: what the supervisor adds to each token, and the memory that each takes."""
    from scripts.benchmarks.report import Report
    from scripts.benchmarks.streams import StreamsSizes, measure_streams

    report = Report("streams", seed)
    report.add(measure_streams(StreamsSizes(**sizes), seed, report.say))
    report.close(as_json=as_json, check=check)


_part = click.option(
    "--part",
    default="model",
    show_default=True,
    type=click.Choice(["model", "null"]),
    help="With a real model, or with an engine that computes nothing at a fixed pace.",
)


@main.command()
@_common
@_part
@click.option(
    "--levels",
    default=(1.0, 2.0, 5.0, 10.0),
    show_default=True,
    multiple=True,
    help="Multiples of capacity; the first is what the others are held against.",
)
@click.option("--rounds", default=2, show_default=True, help="Of all levels.")
@click.option("--batch", default=16, show_default=True, help="Requests that are computed together.")
@click.option("--queue", default=64, show_default=True, help="Requests that may wait.")
@click.option("--prompt-tokens", default=60, show_default=True, help="About.")
@click.option("--answer-tokens", default=32, show_default=True, help="At most.")
@click.option(
    "--hurried-share", default=0.5, show_default=True, help="Of a full queue that half have time for."
)
@click.option("--settle-s", default=15.0, show_default=True, help="Before what is measured, of each level.")
@click.option("--seconds", default=45.0, show_default=True, help="What is measured, of each level.")
def overload(as_json: bool, check: bool, seed: int, part: str, **sizes: Any) -> None:
    """Several times what a model can do: what gets done, how soon the rest is refused, and whether it is told the truth."""
    from scripts.benchmarks.overload import OverloadSizes, measure_overload
    from scripts.benchmarks.report import Report

    report = Report("overload", seed)
    report.add(measure_overload(part, OverloadSizes(**sizes), seed, report.say))
    report.close(as_json=as_json, check=check)


@main.command()
@_common
@_part
@click.option("--rounds", default=3, show_default=True, help="Of all that is compared.")
@click.option("--load", default=3.0, show_default=True, help="Of the background, in multiples of capacity.")
@click.option("--interactive-per-s", default=1.0, show_default=True, help="Interactive requests.")
@click.option("--batch", default=16, show_default=True, help="Requests that are computed together.")
@click.option("--queue", default=32, show_default=True, help="Requests that may wait.")
@click.option("--texts", default=12, show_default=True, help="Different ones, that the background asks for.")
@click.option(
    "--prompt-tokens",
    default=(50, 150),
    type=(int, int),
    show_default=True,
    help="Of the background's, about.",
)
@click.option(
    "--answer-tokens", default=(64, 128), type=(int, int), show_default=True, help="Of the background's."
)
@click.option("--chat-prompt-tokens", default=180, show_default=True, help="Of the interactive ones, about.")
@click.option("--chat-answer-tokens", default=24, show_default=True, help="Of the interactive ones.")
@click.option("--settle-s", default=15.0, show_default=True, help="Before a background is measured.")
@click.option("--seconds", default=40.0, show_default=True, help="What is measured, of each phase.")
def mixed(as_json: bool, check: bool, seed: int, part: str, **sizes: Any) -> None:
    """People and batch jobs at once: the time to an interactive request's first token, and the background's throughput."""
    from scripts.benchmarks.mixed import MixedSizes, measure_mixed
    from scripts.benchmarks.report import Report

    report = Report("mixed", seed)
    report.add(measure_mixed(part, MixedSizes(**sizes), seed, report.say))
    report.close(as_json=as_json, check=check)


@main.command()
@_common
@_part
@click.option("--rounds", default=3, show_default=True, help="Of all that is compared.")
@click.option("--load", default=3.0, show_default=True, help="Of the big one, in multiples of capacity.")
@click.option("--times", default=10.0, show_default=True, help="So much less the small one sends.")
@click.option("--batch", default=16, show_default=True, help="Requests that are computed together.")
@click.option("--client-queue", default=48, show_default=True, help="Requests of one client that may wait.")
@click.option("--prompt-tokens", default=60, show_default=True, help="About.")
@click.option("--answer-tokens", default=48, show_default=True, help="At most.")
@click.option("--settle-s", default=15.0, show_default=True, help="Before what is measured under load.")
@click.option("--seconds", default=60.0, show_default=True, help="What is measured, of each phase.")
def tenants(as_json: bool, check: bool, seed: int, part: str, **sizes: Any) -> None:
    """Two clients of one tier, one sending ten times as much: what the small one has to wait, beside being alone."""
    from scripts.benchmarks.report import Report
    from scripts.benchmarks.tenants import TenantsSizes, measure_tenants

    report = Report("tenants", seed)
    report.add(measure_tenants(part, TenantsSizes(**sizes), seed, report.say))
    report.close(as_json=as_json, check=check)


@main.command()
@_common
@click.option(
    "--queued",
    default=(100, 1000, 10_000, 100_000),
    show_default=True,
    multiple=True,
    type=click.IntRange(2, 1_000_000),
    help="How many wait; give it several times.",
)
@click.option("--rounds", default=5, show_default=True, help="Of every kind, among each number.")
@click.option("--decisions", default=2000, show_default=True, help="Timed in each round.")
@click.option("--each-client", default=10, show_default=True, help="So many wait of each client.")
def decisions(as_json: bool, check: bool, seed: int, queued: tuple[int, ...], **sizes: int) -> None:
    """What one scheduling decision costs, by how many requests wait."""
    from scripts.benchmarks.decisions import DecisionSizes, measure_decisions
    from scripts.benchmarks.report import Report

    report = Report("decisions", seed)
    report.add(measure_decisions(DecisionSizes(queued=tuple(sorted(set(queued))), **sizes), seed, report.say))
    report.close(as_json=as_json, check=check)


@main.command()
@_common
@_part
@click.option("--requests", default=90, show_default=True, help="Of the three models in turn.")
@click.option("--gap-s", default=1.0, show_default=True, help="Between two requests, about.")
@click.option("--prompt-tokens", default=40, show_default=True, help="About.")
@click.option("--answer-tokens", default=16, show_default=True, help="At most.")
@click.option("--residency-min-s", default=10.0, show_default=True, help="As [memory] has it.")
@click.option("--swap-wait-s", default=30.0, show_default=True, help="As [memory] has it.")
@click.option("--weights-mb", default=400, show_default=True, help="Of a model that computes nothing.")
@click.option("--load-s", default=1.0, show_default=True, help="That such a model is loaded for.")
def swapping(as_json: bool, check: bool, seed: int, part: str, **sizes: Any) -> None:
    """Three models in memory for two, asked in turn: how often they are loaded, and what that disturbs."""
    from scripts.benchmarks.report import Report
    from scripts.benchmarks.swapping import SwapSizes, measure_swapping

    report = Report("swapping", seed)
    report.add(measure_swapping(part, SwapSizes(**sizes), seed, report.say))
    report.close(as_json=as_json, check=check)


@main.command()
@_common
@click.option("--rounds", default=5, show_default=True, help="Pairs of runs.")
@click.option("--streams", default=8, show_default=True, help="In all, of one model or half of each.")
@click.option("--max-tokens", default=64, show_default=True, help="Of each stream's answer.")
def pair(as_json: bool, check: bool, seed: int, **sizes: int) -> None:
    """Two models in use at once: what they give together, beside one model with as many streams."""
    from scripts.benchmarks.pair import PairSizes, measure_pair
    from scripts.benchmarks.report import Report

    report = Report("pair", seed)
    report.add(measure_pair(PairSizes(**sizes), report.say))
    report.close(as_json=as_json, check=check)


@main.command()
@_common
@click.option("--rounds", default=3, show_default=True, help="Pairs of runs of each text.")
@click.option("--texts", default=6, show_default=True, type=click.IntRange(1, 12), help="Of each kind.")
@click.option("--max-tokens", default=80, show_default=True, help="Of each answer.")
@click.option("--streams", default=1, show_default=True, help="Answers that are computed at a time.")
def speculate(as_json: bool, check: bool, seed: int, **sizes: int) -> None:
    """Answers with and without guesses by prompt lookup: on texts that repeat their prompt, and on others."""
    from scripts.benchmarks.report import Report
    from scripts.benchmarks.speculate import SpeculateSizes, measure_speculate

    report = Report("speculate", seed)
    report.add(measure_speculate(SpeculateSizes(**sizes), seed, report.say))
    report.close(as_json=as_json, check=check)


@main.command()
@_common
@click.option("--rounds", default=5, show_default=True, help="Pairs of runs.")
@click.option("--streams", default=8, show_default=True, help="That are computed together.")
@click.option("--max-tokens", default=64, show_default=True, help="Of each stream's answer.")
def seeds(as_json: bool, check: bool, seed: int, **sizes: int) -> None:
    """Streams with seeds of their own beside as many without: neither leaves the batch."""
    from scripts.benchmarks.report import Report
    from scripts.benchmarks.seeds import SeedSizes, measure_seeds

    report = Report("seeds", seed)
    report.add(measure_seeds(SeedSizes(**sizes), seed, report.say))
    report.close(as_json=as_json, check=check)


@main.command()
@_common
@click.option("--rounds", default=5, show_default=True, help="Conversations of each kind.")
@click.option("--turns", default=5, show_default=True, type=click.IntRange(2), help="Of each conversation.")
@click.option("--system-tokens", default=400, show_default=True, help="Of its system prompt, about.")
@click.option("--turn-tokens", default=44, show_default=True, help="Of what its user says in a turn, about.")
@click.option("--answer-tokens", default=24, show_default=True, help="At most, in a turn.")
def prefix(as_json: bool, check: bool, seed: int, **sizes: int) -> None:
    """A conversation's last turn beside its new tokens alone: what was computed before is kept, through a kill -9, too."""
    from scripts.benchmarks.prefix import PrefixSizes, measure_prefix
    from scripts.benchmarks.report import Report

    report = Report("prefix", seed)
    report.add(measure_prefix(PrefixSizes(**sizes), seed, report.say))
    report.close(as_json=as_json, check=check)


@main.command()
@_common
@click.option("--rounds", default=3, show_default=True, help="Of all that is compared.")
@click.option("--long-tokens", default=1500, show_default=True, help="Of the long prompt.")
@click.option("--short-tokens", default=20, show_default=True, help="Of the short one.")
@click.option("--gap-s", default=0.5, show_default=True, help="So much later comes the short one.")
@click.option("--answer-tokens", default=8, show_default=True, help="Of both.")
@click.option("--stream-tokens", default=64, show_default=True, help="Of a stream that decodes meanwhile.")
def chunk(as_json: bool, check: bool, seed: int, **sizes: Any) -> None:
    """A short request behind a long prompt, and a stream beside it: what the long prompt keeps them waiting."""
    from scripts.benchmarks.chunk import ChunkSizes, measure_chunk
    from scripts.benchmarks.report import Report

    report = Report("chunk", seed)
    report.add(measure_chunk(ChunkSizes(**sizes), seed, report.say))
    report.close(as_json=as_json, check=check)


@main.command()
@_common
@click.option("--rounds", default=3, show_default=True, help="Pairs of runs.")
@click.option("--requests", default=16, show_default=True, help="At once.")
@click.option("--shared-tokens", default=400, show_default=True, help="That all prompts begin with.")
@click.option("--own-tokens", default=4, show_default=True, help="Of each behind them.")
def shared(as_json: bool, check: bool, seed: int, **sizes: int) -> None:
    """Requests at once that begin alike: how much of their prompts is computed, beside one of them."""
    from scripts.benchmarks.report import Report
    from scripts.benchmarks.shared import SharedSizes, measure_shared

    report = Report("shared", seed)
    report.add(measure_shared(SharedSizes(**sizes), seed, report.say))
    report.close(as_json=as_json, check=check)


@main.command(hidden=True)
def null_worker() -> None:
    """A worker of the supervisor whose engine computes nothing."""
    from scripts.benchmarks.null_worker import run

    run()


@main.command(hidden=True)
def mlx_lm_child() -> None:
    """mlx-lm by itself, told what to do on stdin."""
    from scripts.benchmarks.mlx_lm_child import run

    run()
