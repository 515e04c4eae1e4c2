"""Two models in use at once beside one model with as many streams: the same prompts, in turns.

The one model is alone in a supervisor of its own, with the BLAS threads that it gets there; while the others are asked it
uses no processor time. The two are the same model under two names, so that nothing else differs.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from mlxsup.protocol.client.sync import Client
from scripts.benchmarks.figures import Spread, paired_ratio
from scripts.benchmarks.load import run_streams
from scripts.benchmarks.prompts import make_prompts
from scripts.benchmarks.report import Goal, Section, Table
from scripts.benchmarks.supervisor_child import (
    KEEPS_NO_BEGINNINGS,
    MODEL,
    Say,
    SupervisorChild,
    blas_threads,
    running_supervisor,
    wait_quiet,
)

GOAL_RATIO = 0.55
_ONE = ("alone",)
_TWO = ("first", "second")
_WARM_UP_TOKENS = 4


class PairSizes(msgspec.Struct, frozen=True):
    rounds: int
    streams: int
    max_tokens: int


class PairFigures(msgspec.Struct, frozen=True):
    """Rates are tokens of answers in a second; the ratio is that of both models together to that of the one."""

    sizes: PairSizes
    threads_one: str
    threads_two: str
    one: Spread
    two: Spread
    ratio: Spread


def measure_pair(sizes: PairSizes, say: Say) -> Section:
    with _supervisor(_ONE, say) as one, _supervisor(_TWO, say) as two:
        ones, twos = [], []
        for child, names in ((one, _ONE), (two, _TWO)):
            _tokens_per_s(child, names, sizes.streams, _WARM_UP_TOKENS, (one, two))
        for number in range(1, sizes.rounds + 1):
            ones.append(_tokens_per_s(one, _ONE, sizes.streams, sizes.max_tokens, (one, two)))
            twos.append(_tokens_per_s(two, _TWO, sizes.streams, sizes.max_tokens, (one, two)))
            say(
                f"round {number} of {sizes.rounds}: one model {ones[-1]:.1f} tokens/s, two together {twos[-1]:.1f}"
            )
        figures = PairFigures(
            sizes,
            blas_threads(one.preload()),
            blas_threads(two.preload()),
            Spread.of(ones),
            Spread.of(twos),
            paired_ratio(twos, ones),
        )
    goal = Goal("two models together, as a share of one model", figures.ratio.median, GOAL_RATIO)
    return Section("pair", figures, [_table(figures)], [goal])


@contextmanager
def _supervisor(names: Sequence[str], say: Say) -> Iterator[SupervisorChild]:
    tables = {f"models.{name}": KEEPS_NO_BEGINNINGS | {"source": MODEL} for name in names}
    with (
        tempfile.TemporaryDirectory(prefix="mlxsup-bench-") as folder,
        running_supervisor(Path(folder), {"worker": {"spares": 0}, **tables}) as child,
    ):
        with Client.connect(child.socket) as client:
            client.call("model/pull", {"model": MODEL})
            for name in names:
                say(f"loading {MODEL} as {name}")
                client.call("model/load", {"model": name})
        yield child


def _tokens_per_s(
    child: SupervisorChild,
    names: Sequence[str],
    streams: int,
    max_tokens: int,
    children: Sequence[SupervisorChild],
) -> float:
    wait_quiet([process for other in children for process in (other.process, *other.workers())])
    return run_streams(child.socket, make_prompts(streams), max_tokens, names).tokens_per_s


def _table(figures: PairFigures) -> Table:
    sizes = figures.sizes
    rows = [
        ("one model", figures.threads_one, figures.one, ""),
        ("two models", figures.threads_two, figures.two, f"{figures.ratio.median:.3f}"),
    ]
    return Table(
        f"{sizes.streams} streams of {sizes.max_tokens} tokens, all of one model or half of each of two, {sizes.rounds} "
        f"pairs; ratios {figures.ratio.min:.3f} to {figures.ratio.max:.3f}",
        ("", "each with", "tokens/s", "min to max", "ratio"),
        [
            (name, threads, f"{rate.median:.2f}", f"{rate.min:.2f} to {rate.max:.2f}", ratio)
            for name, threads, rate, ratio in rows
        ],
    )
