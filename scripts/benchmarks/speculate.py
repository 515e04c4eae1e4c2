"""The same texts with and without prompt lookup, in turns, by two supervisors with the real model.

While the one is asked the other uses no processor time. Compared is the time from the first token of an answer to its last:
guesses change nothing about the reading of prompts.
"""

import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from mlxsup.protocol.client.sync import Client
from scripts.benchmarks.figures import Spread, paired_ratio
from scripts.benchmarks.load import Answer, run_streams
from scripts.benchmarks.prompts import PROMPTS
from scripts.benchmarks.report import Goal, Section, Table
from scripts.benchmarks.supervisor_child import MODEL, Say, SupervisorChild, running_supervisor, wait_quiet

GOALS = {"repeating": 1.8, "other": 0.97}
_NAMES = ("Anna", "Boris", "Carla", "David", "Elena", "Farid", "Greta", "Hanno")
_PLACES = ("market", "harbour", "library", "station", "bakery", "museum", "garden", "theatre")
_THINGS = ("three apples", "an old map", "two tickets", "a blue umbrella", "some bread", "a letter")
_WHEN = ("On Monday", "In the evening", "After lunch", "Before the rain", "Last week", "At noon")
_WARM_UP_TOKENS = 8


class SpeculateSizes(msgspec.Struct, frozen=True):
    rounds: int
    texts: int
    max_tokens: int
    streams: int


class KindFigures(msgspec.Struct, frozen=True):
    """Tokens of answers in a second, each stream's own; `differ` are texts that were not the same on both sides."""

    kind: str
    plain: Spread
    lookup: Spread
    ratio: Spread
    differ: int


def measure_speculate(sizes: SpeculateSizes, seed: int, say: Say) -> Section:
    with _supervisor(say, lookup=False) as plain, _supervisor(say, lookup=True) as lookup:
        sides = (plain, lookup)
        for child in sides:
            _ask(child, PROMPTS[:1], _WARM_UP_TOKENS, sides)
        kinds = [
            _compare(kind, texts, sizes, sides, say)
            for kind, texts in (
                ("repeating", _repeating(sizes.texts, seed)),
                ("other", PROMPTS[: sizes.texts]),
            )
        ]
    goals = [
        goal
        for figures in kinds
        for goal in (
            Goal(
                f"speed with prompt lookup, {figures.kind} texts", figures.ratio.median, GOALS[figures.kind]
            ),
            Goal(f"{figures.kind} texts that differ", figures.differ, 0, at_least=False),
        )
    ]
    return Section("speculate", kinds, [_table(sizes, kinds)], goals)


def _compare(
    kind: str,
    texts: Sequence[str],
    sizes: SpeculateSizes,
    sides: tuple[SupervisorChild, SupervisorChild],
    say: Say,
) -> KindFigures:
    rates: tuple[list[float], list[float]] = ([], [])
    differ = 0
    for number in range(sizes.rounds):
        # Several at a time are asked together; else one after the other.
        for first in range(0, len(texts), sizes.streams):
            prompts = texts[first : first + sizes.streams]
            answers: dict[int, list[Answer]] = {}
            # Whoever goes first changes from text to text.
            for side in (0, 1) if (number + first) % 2 else (1, 0):
                answers[side] = _ask(sides[side], prompts, sizes.max_tokens, sides)
            for one, other in zip(answers[0], answers[1], strict=True):
                differ += one.text != other.text
                for side, answer in ((0, one), (1, other)):
                    rates[side].append(answer.result.timings.tokens_per_second)
            say(
                f"{kind}, round {number + 1} of {sizes.rounds}: {rates[0][-1]:.1f} tokens/s plain, {rates[1][-1]:.1f} with lookup"
            )
    plain, lookup = rates
    return KindFigures(kind, Spread.of(plain), Spread.of(lookup), paired_ratio(lookup, plain), differ)


def _repeating(count: int, seed: int) -> list[str]:
    """Passages to copy with a small correction, after an example of how that is done."""
    chance = random.Random(f"speculate {seed}")
    prompts = []
    for _ in range(count):
        example, text = _passage(chance), _passage(chance)
        prompts.append(
            f"Draft: {example}\nFinal version: {example}\n\nDraft: {text}\nFinal version: {text}\n\nFinal version again:"
        )
    return prompts


def _passage(chance: random.Random) -> str:
    return " ".join(
        f"{chance.choice(_WHEN)} {chance.choice(_NAMES)} went to the {chance.choice(_PLACES)} with {chance.choice(_THINGS)}."
        for _ in range(6)
    )


@contextmanager
def _supervisor(say: Say, *, lookup: bool) -> Iterator[SupervisorChild]:
    tables: dict[str, dict[str, Any]] = {"worker": {"spares": 0}, f"models.{MODEL}": {"lookup": lookup}}
    with (
        tempfile.TemporaryDirectory(prefix="mlxsup-bench-") as folder,
        running_supervisor(Path(folder), tables) as child,
    ):
        with Client.connect(child.socket) as client:
            client.call("model/pull", {"model": MODEL})
            say(f"loading {MODEL} {'with' if lookup else 'without'} lookup")
            client.call("model/load", {"model": MODEL})
        yield child


def _ask(
    child: SupervisorChild, prompts: Sequence[str], max_tokens: int, sides: Sequence[SupervisorChild]
) -> list[Answer]:
    wait_quiet([process for other in sides for process in (other.process, *other.workers())])
    return run_streams(child.socket, prompts, max_tokens).answers


def _table(sizes: SpeculateSizes, kinds: Sequence[KindFigures]) -> Table:
    return Table(
        f"{sizes.texts} texts of each kind, up to {sizes.max_tokens} tokens, {sizes.streams} at a time, {sizes.rounds} rounds",
        ("texts", "plain tokens/s", "with lookup", "ratio", "min to max", "differ"),
        [
            (
                figures.kind,
                f"{figures.plain.median:.2f}",
                f"{figures.lookup.median:.2f}",
                f"{figures.ratio.median:.3f}",
                f"{figures.ratio.min:.3f} to {figures.ratio.max:.3f}",
                str(figures.differ),
            )
            for figures in kinds
        ],
    )
