"""Streams that bring seeds beside streams that bring none, in turns, on one supervisor with the real model."""

import msgspec

from scripts.benchmarks.figures import Spread, paired_ratio
from scripts.benchmarks.load import run_streams
from scripts.benchmarks.prompts import make_prompts
from scripts.benchmarks.report import Goal, Section, Table
from scripts.benchmarks.supervisor_child import Say, SupervisorChild, supervisor_child, wait_quiet

GOAL_RATIO = 0.97
_TEMPERATURE = 0.7
_WARM_UP_TOKENS = 4


class SeedSizes(msgspec.Struct, frozen=True):
    rounds: int
    streams: int
    max_tokens: int


class SeedFigures(msgspec.Struct, frozen=True):
    """Tokens of answers in a second. `changed` texts were others with the same seed than in the first round."""

    sizes: SeedSizes
    unseeded: Spread
    seeded: Spread
    ratio: Spread
    changed: int


def measure_seeds(sizes: SeedSizes, seed: int, say: Say) -> Section:
    # Kept beginnings would take the prompts' reading from the later runs.
    with supervisor_child(model={"prefix_bytes_max": 0, "prefix_disk_bytes_max": 0}) as child:
        child.load_model(say)
        _ask(child, sizes, None, _WARM_UP_TOKENS)
        unseeded: list[float] = []
        seeded: list[float] = []
        texts: list[list[str]] = []
        for number in range(1, sizes.rounds + 1):
            # Whoever goes first changes from round to round.
            for is_seeded in (False, True) if number % 2 else (True, False):
                rate, said = _ask(child, sizes, seed if is_seeded else None, sizes.max_tokens)
                (seeded if is_seeded else unseeded).append(rate)
                texts += [said] if is_seeded else []
            say(
                f"round {number} of {sizes.rounds}: {unseeded[-1]:.1f} tokens/s unseeded, {seeded[-1]:.1f} seeded"
            )
    changed = sum(one != first for said in texts for one, first in zip(said, texts[0], strict=True))
    figures = SeedFigures(
        sizes, Spread.of(unseeded), Spread.of(seeded), paired_ratio(seeded, unseeded), changed
    )
    goals = [
        Goal("seeded throughput, as a share of unseeded", figures.ratio.median, GOAL_RATIO),
        Goal("texts that changed with the same seed", changed, 0, at_least=False),
    ]
    return Section("seeds", figures, [_table(figures)], goals)


def _ask(
    child: SupervisorChild, sizes: SeedSizes, seed: int | None, max_tokens: int
) -> tuple[float, list[str]]:
    wait_quiet([child.process, *child.workers()])
    own = {} if seed is None else {"seed": seed}
    # The model never ends these texts before that.
    run = run_streams(
        child.socket,
        make_prompts(sizes.streams),
        max_tokens,
        more_params=lambda index: {
            "temperature": _TEMPERATURE,
            **{name: value + index for name, value in own.items()},
        },
    )
    return run.tokens_per_s, [answer.text for answer in run.answers]


def _table(figures: SeedFigures) -> Table:
    sizes = figures.sizes
    return Table(
        f"{sizes.streams} streams of {sizes.max_tokens} tokens at temperature {_TEMPERATURE}, {sizes.rounds} pairs; ratios "
        f"{figures.ratio.min:.3f} to {figures.ratio.max:.3f}",
        ("", "tokens/s", "min to max", "ratio"),
        [
            (name, f"{rate.median:.2f}", f"{rate.min:.2f} to {rate.max:.2f}", ratio)
            for name, rate, ratio in (
                ("without seeds", figures.unseeded, ""),
                ("with seeds", figures.seeded, f"{figures.ratio.median:.3f}"),
            )
        ],
    )
