"""Requests that come at once and begin alike: how much of their prompts is computed, beside the prompt of one of them."""

import random

import msgspec

from scripts.benchmarks.figures import Spread, paired_ratio
from scripts.benchmarks.load import Run, run_streams
from scripts.benchmarks.report import Goal, Section, Table
from scripts.benchmarks.supervisor_child import Say, SupervisorChild, supervisor_child, wait_quiet

GOAL_WORK_RATIO = 1.2
# Of a usual vocabulary: words, whatever they say.
_TOKENS = range(1000, 40_000)


class SharedSizes(msgspec.Struct, frozen=True):
    """Each prompt has `shared_tokens` in common with the others, and `own_tokens` behind them."""

    rounds: int
    requests: int
    shared_tokens: int
    own_tokens: int


class Work(msgspec.Struct, frozen=True):
    """Tokens of prompts that were computed, and seconds until all first tokens had come."""

    tokens: int
    seconds: float


class SharedFigures(msgspec.Struct, frozen=True):
    sizes: SharedSizes
    one: list[Work]
    all: list[Work]
    work_ratio: Spread
    time_ratio: Spread


def measure_shared(sizes: SharedSizes, seed: int, say: Say) -> Section:
    chance = random.Random(f"shared {seed}")
    model = {"prefix_bytes_max": 1 << 30, "batch_sequences_max": sizes.requests}
    with supervisor_child(model=model) as child:
        child.load_model(say)
        _ask(child, sizes, 1, chance)
        one, together = [], []
        for number in range(1, sizes.rounds + 1):
            one.append(_ask(child, sizes, 1, chance))
            together.append(_ask(child, sizes, sizes.requests, chance))
            say(
                f"round {number} of {sizes.rounds}: {one[-1].tokens} tokens in {one[-1].seconds:.2f} s for one, "
                f"{together[-1].tokens} in {together[-1].seconds:.2f} s for {sizes.requests}"
            )
    figures = SharedFigures(
        sizes,
        one,
        together,
        paired_ratio([work.tokens for work in together], [work.tokens for work in one]),
        paired_ratio([work.seconds for work in together], [work.seconds for work in one]),
    )
    goal = Goal(
        f"tokens of prompts computed for {sizes.requests}, beside those for one",
        figures.work_ratio.max,
        GOAL_WORK_RATIO,
        at_least=False,
    )
    return Section("shared", figures, [_table(figures)], [goal])


def _ask(child: SupervisorChild, sizes: SharedSizes, requests: int, chance: random.Random) -> Work:
    """With a beginning that nobody had before."""
    wait_quiet([child.process, *child.workers()])
    beginning = [chance.choice(_TOKENS) for _ in range(sizes.shared_tokens)]
    ends = [[chance.choice(_TOKENS) for _ in range(sizes.own_tokens)] for _ in range(requests)]
    run = run_streams(
        child.socket,
        [""] * requests,
        1,
        more_params=lambda index: {"prompt": None, "prompt_tokens": beginning + ends[index]},
    )
    return Work(_computed(run), run.seconds)


def _computed(run: Run) -> int:
    usages = [answer.result.usage for answer in run.answers]
    return sum(usage.prompt_tokens - usage.cached_tokens for usage in usages)


def _table(figures: SharedFigures) -> Table:
    sizes = figures.sizes
    rows = [
        (
            str(number),
            str(one.tokens),
            str(together.tokens),
            f"{together.tokens / one.tokens:.3f}",
            f"{one.seconds:.2f}",
            f"{together.seconds:.2f}",
            f"{together.seconds / one.seconds:.2f}",
        )
        for number, (one, together) in enumerate(zip(figures.one, figures.all, strict=True), 1)
    ]
    return Table(
        f"{sizes.requests} requests at once whose first {sizes.shared_tokens} tokens are the same, and {sizes.own_tokens} are "
        "their own",
        ("round", "tokens for one", "for all", "ratio", "seconds for one", "for all", "ratio"),
        rows,
    )
