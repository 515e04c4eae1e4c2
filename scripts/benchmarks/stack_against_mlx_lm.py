"""The whole stack against mlx-lm in one process: the same model, prompts, threads and span, in turns.

The span is from text to text: tokenising, prefill, decoding and detokenising, and on the stack's side the way
through client, supervisor and worker and back. Both sides have the model in memory all the time; while one computes
the other waits, and uses no processor time.
"""

from collections.abc import Sequence

import msgspec

from mlxsup.config.schema import Model
from scripts.benchmarks.figures import Spread, paired_ratio
from scripts.benchmarks.load import Run, run_streams
from scripts.benchmarks.mlx_lm_messages import Texts, TextsDone
from scripts.benchmarks.mlx_lm_process import MlxLmProcess, mlx_lm_process
from scripts.benchmarks.prompts import make_prompts
from scripts.benchmarks.report import Goal, Section, Table
from scripts.benchmarks.supervisor_child import (
    Say,
    SupervisorChild,
    blas_threads,
    supervisor_child,
    thread_keys,
    wait_quiet,
)

GOAL_RATIO = 0.97
_WARM_UP_TOKENS = 4


class ModelSizes(msgspec.Struct, frozen=True):
    rounds: int
    streams: tuple[int, ...]
    max_tokens: int
    threads: int | None


class Pair(msgspec.Struct, frozen=True):
    """One run of each side; `texts_differ` counts the streams whose texts are not the same."""

    tokens: int
    mlx_lm_s: float
    stack_s: float
    texts_differ: int

    @property
    def mlx_lm_rate(self) -> float:
        return self.tokens / self.mlx_lm_s

    @property
    def stack_rate(self) -> float:
        return self.tokens / self.stack_s


class Comparison(msgspec.Struct, frozen=True):
    """Rates are tokens of answers in a second; the ratio is the stack's to mlx-lm's."""

    streams: int
    mlx_lm: Spread
    stack: Spread
    ratio: Spread
    pairs: list[Pair]

    @property
    def texts_differ(self) -> int:
        return sum(pair.texts_differ for pair in self.pairs)


class ModelFigures(msgspec.Struct, frozen=True):
    sizes: ModelSizes
    threads: str
    comparisons: list[Comparison]


def measure_model(sizes: ModelSizes, say: Say) -> Section:
    batch = max(*sizes.streams, Model().batch_sequences_max)
    say("starting a supervisor, and mlx-lm in a process of its own")
    with supervisor_child(worker=thread_keys(sizes.threads), model={"batch_sequences_max": batch}) as child:
        folder = child.load_model(say)
        preload = child.preload()
        with mlx_lm_process(preload) as mlx_lm:
            mlx_lm.start(folder, batch)
            comparisons = [_compare(child, mlx_lm, sizes, streams, say) for streams in sizes.streams]
    figures = ModelFigures(sizes, blas_threads(preload), comparisons)
    return Section("against_mlx_lm", figures, [_table(figures)], _goals(comparisons))


def _compare(
    child: SupervisorChild, mlx_lm: MlxLmProcess, sizes: ModelSizes, streams: int, say: Say
) -> Comparison:
    prompts = make_prompts(streams)
    _pair(child, mlx_lm, prompts, _WARM_UP_TOKENS)
    pairs = []
    for number in range(1, sizes.rounds + 1):
        pair = _pair(child, mlx_lm, prompts, sizes.max_tokens)
        pairs.append(pair)
        say(
            f"{streams} streams, round {number} of {sizes.rounds}: mlx-lm {pair.mlx_lm_rate:.1f} tokens/s, "
            f"the stack {pair.stack_rate:.1f}"
        )
    return compare(streams, pairs)


def compare(streams: int, pairs: list[Pair]) -> Comparison:
    mlx_lm_rates = [pair.mlx_lm_rate for pair in pairs]
    stack_rates = [pair.stack_rate for pair in pairs]
    return Comparison(
        streams=streams,
        mlx_lm=Spread.of(mlx_lm_rates),
        stack=Spread.of(stack_rates),
        ratio=paired_ratio(stack_rates, mlx_lm_rates),
        pairs=pairs,
    )


def _pair(child: SupervisorChild, mlx_lm: MlxLmProcess, prompts: Sequence[str], max_tokens: int) -> Pair:
    processes = [mlx_lm.process, child.process, *child.workers()]
    wait_quiet(processes)
    alone = mlx_lm.texts(Texts(list(prompts), max_tokens))
    wait_quiet(processes)
    run = run_streams(child.socket, prompts, max_tokens)
    return make_pair(alone, run)


def make_pair(alone: TextsDone, run: Run) -> Pair:
    if run.tokens != alone.tokens:
        # Then the texts differ, too, and rates could not be compared.
        raise RuntimeError(f"mlx-lm gave {alone.tokens} tokens, the stack {run.tokens}")
    texts = [answer.text for answer in run.answers]
    return Pair(
        tokens=run.tokens,
        mlx_lm_s=alone.seconds,
        stack_s=run.seconds,
        texts_differ=sum(one != other for one, other in zip(alone.texts, texts, strict=True)),
    )


def _table(figures: ModelFigures) -> Table:
    sizes = figures.sizes
    rows = [
        (
            str(found.streams),
            f"{found.mlx_lm.median:.2f}",
            f"{found.stack.median:.2f}",
            f"{found.ratio.median:.3f}",
            f"{found.ratio.min:.3f} to {found.ratio.max:.3f}",
            "equal" if found.texts_differ == 0 else f"{found.texts_differ} DIFFER",
        )
        for found in figures.comparisons
    ]
    return Table(
        f"The stack against mlx-lm in one process, {sizes.max_tokens} tokens a stream, {sizes.rounds} pairs, "
        f"{figures.threads} on both sides",
        ("streams", "mlx-lm tokens/s", "stack tokens/s", "ratio", "pair by pair", "texts"),
        rows,
    )


def _goals(comparisons: list[Comparison]) -> list[Goal]:
    goals = [
        Goal(f"the stack's share of mlx-lm's rate, {found.streams} streams", found.ratio.median, GOAL_RATIO)
        for found in comparisons
    ]
    differ = sum(found.texts_differ for found in comparisons)
    return [*goals, Goal("texts that differ", differ, 0, at_least=False)]
