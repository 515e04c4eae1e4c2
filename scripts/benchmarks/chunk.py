"""A short request behind a long prompt: beside it, as long as it would take if the long prompt were read in one piece first.

Where it is read in one piece the long one is of a more urgent tier, and so keeps the short one waiting for all of its prompt,
as a server does that reads each prompt as it comes. Beginnings are not kept: every prompt is read.
"""

import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import trio

from mlxsup.config.schema import Model
from mlxsup.protocol.client.aio import connect
from mlxsup.protocol.client.sync import Client
from scripts.benchmarks.figures import Spread, paired_ratio
from scripts.benchmarks.prompts import PROMPTS
from scripts.benchmarks.report import Goal, Section, Table
from scripts.benchmarks.supervisor_child import (
    KEEPS_NO_BEGINNINGS,
    MODEL,
    Say,
    SupervisorChild,
    running_supervisor,
    wait_quiet,
)
from scripts.benchmarks.traffic import Asked, Order, Traffic, faults

GOAL_SHORT_RATIO = 0.1
GOAL_LONG_RATIO = 1.1
_LIMIT_S = 600.0
_ONE_PIECE = {"prefill_chunk_tokens": 65_536, "prefill_target_s": 3600.0}
_GREEDY = {"model": MODEL, "temperature": 0}
_BEFORE_S = 1.0
# Of a usual vocabulary: words, whatever they say.
_TOKENS = range(1000, 40_000)


class ChunkSizes(msgspec.Struct, frozen=True):
    rounds: int
    long_tokens: int
    short_tokens: int
    gap_s: float
    answer_tokens: int
    stream_tokens: int


class Times(msgspec.Struct, frozen=True):
    """Of one round, in seconds. Of the long one from its sending to its end, of the short one to its first token. A stream's
    longest pause is that while a long prompt is read, its least one is without.
    """

    long_in_one_piece: float
    short_in_one_piece: float
    long_alone: float
    long_beside: float
    short_alone: float
    short_beside: float
    pause: float
    least_pause: float


class ChunkFigures(msgspec.Struct, frozen=True):
    sizes: ChunkSizes
    target_s: float
    rounds: list[Times]
    short_ratio: Spread
    long_ratio: Spread
    pause_s: Spread


def measure_chunk(sizes: ChunkSizes, seed: int, say: Say) -> Section:
    chance = random.Random(f"chunk {seed}")
    with _supervisor(_ONE_PIECE, say) as whole, _supervisor({}, say) as chunked:
        for child in (whole, chunked):
            trio.run(_warm_up, child, sizes, chance)
        rounds = []
        for number in range(1, sizes.rounds + 1):
            rounds.append(_round(whole, chunked, sizes, chance))
            say(f"round {number} of {sizes.rounds}: {_words(rounds[-1])}")
    figures = ChunkFigures(
        sizes=sizes,
        target_s=Model().prefill_target_s,
        rounds=rounds,
        short_ratio=paired_ratio(
            [times.short_beside for times in rounds], [times.short_in_one_piece for times in rounds]
        ),
        long_ratio=paired_ratio(
            [times.long_beside for times in rounds], [times.long_in_one_piece for times in rounds]
        ),
        pause_s=Spread.of([times.pause for times in rounds]),
    )
    return Section("chunk", figures, [_table(figures)], _goals(figures))


@contextmanager
def _supervisor(model: dict[str, Any], say: Say) -> Iterator[SupervisorChild]:
    tables = {"worker": {"spares": 0}, f"models.{MODEL}": KEEPS_NO_BEGINNINGS | model}
    with (
        tempfile.TemporaryDirectory(prefix="mlxsup-bench-") as folder,
        running_supervisor(Path(folder), tables) as child,
    ):
        with Client.connect(child.socket) as client:
            client.call("model/pull", {"model": MODEL})
            say(f"loading {MODEL}")
            client.call("model/load", {"model": MODEL})
        yield child


def _round(
    whole: SupervisorChild, chunked: SupervisorChild, sizes: ChunkSizes, chance: random.Random
) -> Times:
    children = [process for child in (whole, chunked) for process in (child.process, *child.workers())]

    def ask(child: SupervisorChild, *steps: tuple[float, Order]) -> list[Asked]:
        wait_quiet(children)
        return trio.run(_ask, child, steps)

    def long(**params: Any) -> Order:
        return _order(chance, sizes.long_tokens, sizes.answer_tokens, **params)

    def short(**params: Any) -> Order:
        return _order(chance, sizes.short_tokens, sizes.answer_tokens, **params)

    (long_in_one_piece,) = ask(whole, (0.0, long()))
    _, short_in_one_piece = ask(
        whole, (0.0, long(max_tokens=1, priority="interactive")), (sizes.gap_s, short())
    )
    (long_alone,) = ask(chunked, (0.0, long()))
    (short_alone,) = ask(chunked, (0.0, short()))
    long_beside, short_beside = ask(chunked, (0.0, long()), (sizes.gap_s, short()))
    # It decodes before the long prompt comes, too.
    stream, _ = ask(
        chunked,
        (0.0, Order("generate", _GREEDY | {"prompt": PROMPTS[0], "max_tokens": sizes.stream_tokens})),
        (_BEFORE_S, long(max_tokens=1)),
    )
    pauses = [
        later - earlier for (earlier, _), (later, _) in zip(stream.deltas, stream.deltas[1:], strict=False)
    ]
    return Times(
        long_in_one_piece=long_in_one_piece.total_ms / 1000,
        short_in_one_piece=short_in_one_piece.ttft_ms / 1000,
        long_alone=long_alone.total_ms / 1000,
        long_beside=long_beside.total_ms / 1000,
        short_alone=short_alone.ttft_ms / 1000,
        short_beside=short_beside.ttft_ms / 1000,
        pause=max(pauses),
        least_pause=min(pauses),
    )


def _order(chance: random.Random, prompt_tokens: int, answer_tokens: int, **params: Any) -> Order:
    """No two begin alike."""
    tokens = [chance.choice(_TOKENS) for _ in range(prompt_tokens)]
    return Order(
        "generate",
        _GREEDY | {"prompt_tokens": tokens, "max_tokens": answer_tokens} | params,
    )


async def _ask(child: SupervisorChild, steps: tuple[tuple[float, Order], ...]) -> list[Asked]:
    """All of them, each so long after the first.

    Raises:
        RuntimeError: one was not answered.
    """
    asked: dict[int, Asked] = {}

    async def ask(number: int, after_s: float, order: Order) -> None:
        await trio.sleep(after_s)
        asked[number] = await traffic.ask(order)

    async with connect(child.socket) as client:
        traffic = Traffic(client, _LIMIT_S)
        async with trio.open_nursery() as nursery:
            for number, (after_s, order) in enumerate(steps):
                nursery.start_soon(ask, number, after_s, order)
    if lost := faults(traffic.asked):
        raise RuntimeError(f"a request was not answered: {lost[0]}")
    return [asked[number] for number in range(len(steps))]


async def _warm_up(child: SupervisorChild, sizes: ChunkSizes, chance: random.Random) -> None:
    await _ask(child, ((0.0, _order(chance, min(sizes.long_tokens, 400), 4)),))


def _words(times: Times) -> str:
    return (
        f"short {times.short_in_one_piece:.2f} s behind one piece, {times.short_beside:.2f} s between chunks; long "
        f"{times.long_in_one_piece:.2f} s in one piece, {times.long_beside:.2f} s beside; longest pause {times.pause:.2f} s"
    )


def _table(figures: ChunkFigures) -> Table:
    sizes = figures.sizes
    rows = [
        (
            str(number),
            f"{times.short_alone:.2f}",
            f"{times.short_in_one_piece:.2f}",
            f"{times.short_beside:.2f}",
            f"{times.short_beside / times.short_in_one_piece:.3f}",
            f"{times.long_in_one_piece:.2f}",
            f"{times.long_alone:.2f}",
            f"{times.long_beside:.2f}",
            f"{times.long_beside / times.long_in_one_piece:.3f}",
            f"{times.least_pause:.3f}",
            f"{times.pause:.3f}",
        )
        for number, times in enumerate(figures.rounds, 1)
    ]
    return Table(
        f"A prompt of {sizes.short_tokens} tokens {sizes.gap_s:g} s behind one of {sizes.long_tokens}, answers of "
        f"{sizes.answer_tokens}; in seconds",
        (
            *("round", "short: TTFT alone", "behind one piece", "between chunks", "ratio"),
            *("long: in one piece", "in chunks", "with the short one", "ratio"),
            *("stream: least pause", "longest"),
        ),
        rows,
    )


def _goals(figures: ChunkFigures) -> list[Goal]:
    return [
        Goal(
            "TTFT of the short one, beside that behind one piece",
            figures.short_ratio.median,
            GOAL_SHORT_RATIO,
            at_least=False,
        ),
        Goal(
            "the long one's time with the short one, beside that in one piece alone",
            figures.long_ratio.median,
            GOAL_LONG_RATIO,
            at_least=False,
        ),
        Goal("longest pause of a stream, seconds", figures.pause_s.max, figures.target_s, at_least=False),
    ]
