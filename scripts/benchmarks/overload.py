"""More than a server can do: what it still gets done, how fast it refuses the rest, and whether it says truly for how long.

Capacity is measured first, by a closed loop. Then requests arrive at random, at multiples of it, all of one client and one
tier. Half of them are in a hurry: their deadline leaves room for a part of a full queue only. The others have time for
more than the full queue, and fill it.
"""

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import msgspec
import trio

from mlxsup.protocol.client.aio import connect
from scripts.benchmarks.figures import Spread, paired_ratio, quantile
from scripts.benchmarks.hints import Hints, check_hints, reason, summarize
from scripts.benchmarks.report import Goal, Section, Table
from scripts.benchmarks.supervisor_child import Say, supervisor_child
from scripts.benchmarks.traffic import (
    Asked,
    Capacity,
    Order,
    Traffic,
    answered,
    faults,
    measure_capacity,
    poisson,
    tokens_per_s,
)
from scripts.benchmarks.workload import WORKLOADS, Workload, texts, with_params

GOAL_GOODPUT = 0.95
GOAL_REFUSAL_MS = 5.0
GOAL_TRUE_SHARE = 0.9
REASONS = ("full", "late")
_LIMIT_S = 300.0
# In a closed loop, beyond the batch: who comes next waits already.
_NEXT = 4


class OverloadSizes(msgspec.Struct, frozen=True):
    """Levels are multiples of capacity. Of each, `settle_s` pass before the `seconds` that are measured."""

    levels: tuple[float, ...]
    rounds: int
    batch: int
    queue: int
    prompt_tokens: int
    answer_tokens: int
    hurried_share: float
    settle_s: float
    seconds: float


class Level(msgspec.Struct, frozen=True):
    """One run of one level. Rates are tokens a second; `wasted` are those of answers that were not complete in time.

    `late` were accepted, and not complete in time; `displaced` were accepted, and refused later.
    """

    level: float
    goodput: float
    wasted: float
    sent: int
    completed: int
    late: int
    displaced: int
    refused: dict[str, int]
    lost: list[str]
    refusal_p50_ms: float | None
    refusal_p99_ms: float | None
    hints: dict[str, Hints]


class OverloadFigures(msgspec.Struct, frozen=True):
    """`ratios` are of a level's goodput to that of the first one, round by round."""

    sizes: OverloadSizes
    capacity: Capacity
    deadlines_s: tuple[float, float]
    rounds: list[list[Level]]
    ratios: dict[float, Spread]


def measure_overload(part: str, sizes: OverloadSizes, seed: int, say: Say) -> Section:
    workload = WORKLOADS[part]()
    model = {
        "batch_sequences_max": sizes.batch,
        "queue_requests_max": sizes.queue,
        # All are of one tier and one client, whose own bounds are not what is looked at.
        "queue_tier_requests_max": sizes.queue + 1,
        "queue_client_requests_max": sizes.queue + 1,
    }
    with supervisor_child(worker=workload.worker, model=model) as child:
        child.load_model(say)
        figures = trio.run(_measure, child.socket, workload, sizes, seed, say)
    return Section(f"overload_{part}", figures, _tables(figures), _goals(figures))


async def _measure(
    socket: Path, workload: Workload, sizes: OverloadSizes, seed: int, say: Say
) -> OverloadFigures:
    say("measuring capacity")
    async with connect(socket) as client:
        capacity = await measure_capacity(
            client,
            texts(workload, seed, sizes.prompt_tokens, sizes.answer_tokens),
            streams=sizes.batch + _NEXT,
            settle_s=sizes.settle_s,
            seconds=sizes.seconds,
            limit_s=_LIMIT_S,
        )
    deadlines_s = _deadlines_s(sizes, capacity)
    say(
        f"capacity: {capacity.tokens_per_s:.1f} tokens/s, {capacity.requests_per_s:.2f} requests/s; deadlines: "
        f"{deadlines_s[0]:.1f} and {deadlines_s[1]:.1f} s"
    )
    rounds = []
    for number in range(sizes.rounds):
        levels = []
        for level in sizes.levels:
            run_seed = seed + 1000 * number + round(10 * level)
            levels.append(await _run(socket, workload, sizes, capacity, deadlines_s, level, run_seed))
            say(f"round {number + 1} of {sizes.rounds}, {_words(levels[-1])}")
        rounds.append(levels)
    return OverloadFigures(sizes, capacity, deadlines_s, rounds, goodput_ratios(rounds))


def _deadlines_s(sizes: OverloadSizes, capacity: Capacity) -> tuple[float, float]:
    """Of who is in a hurry, and of the others: time in the batch, and for a part of a full queue, or twice all of it."""
    drain_s = sizes.queue / capacity.requests_per_s
    return capacity.service_s + sizes.hurried_share * drain_s, 2 * (capacity.service_s + drain_s)


async def _run(
    socket: Path,
    workload: Workload,
    sizes: OverloadSizes,
    capacity: Capacity,
    deadlines_s: tuple[float, float],
    level: float,
    seed: int,
) -> Level:
    orders = _orders(workload, sizes, deadlines_s, seed)
    async with connect(socket) as client:
        traffic = Traffic(client, _LIMIT_S)
        async with traffic.arriving(poisson(level * capacity.requests_per_s, seed), orders):
            await trio.sleep(sizes.settle_s)
            since_s = trio.current_time()
            await trio.sleep(sizes.seconds)
            until_s = trio.current_time()
    return evaluate(level, traffic.asked, since_s, until_s)


def _orders(
    workload: Workload, sizes: OverloadSizes, deadlines_s: tuple[float, float], seed: int
) -> Iterator[Order]:
    chance = random.Random(f"deadlines {seed}")
    for order in texts(workload, seed, sizes.prompt_tokens, sizes.answer_tokens):
        yield with_params(order, deadline_ms=max(1, round(chance.choice(deadlines_s) * 1000)))


def evaluate(level: float, all_asked: list[Asked], since_s: float, until_s: float) -> Level:
    """Refusals and their hints are those of the whole run; goodput and waste are of the time between the two moments."""
    good = [asked for asked in answered(all_asked) if asked.total_ms <= asked.order.params["deadline_ms"]]
    reasons = Counter(reason(asked) for asked in all_asked if asked.is_refused)
    refused = {name: reasons.pop(name, 0) for name in REASONS}
    waits_ms = [asked.total_ms for asked in all_asked if asked.is_refused and reason(asked) in REASONS]
    wasted = sum(_tokens_wasted(asked) for asked in all_asked if since_s <= asked.ended_s < until_s)
    return Level(
        level=level,
        goodput=tokens_per_s(good, since_s, until_s),
        wasted=wasted / (until_s - since_s),
        sent=len(all_asked),
        completed=len(good),
        late=reasons.pop("deadline_exceeded", 0) + len(answered(all_asked)) - len(good),
        displaced=sum(reasons.values()),
        refused=refused,
        lost=faults(all_asked),
        refusal_p50_ms=quantile(waits_ms, 0.5) if waits_ms else None,
        refusal_p99_ms=quantile(waits_ms, 0.99) if waits_ms else None,
        hints={name: summarize(check_hints(all_asked, name)) for name in REASONS},
    )


def _tokens_wasted(asked: Asked) -> int:
    if asked.error is not None:
        return asked.error.data.tokens_delivered or 0
    return asked.tokens if asked.total_ms > asked.order.params["deadline_ms"] else 0


def goodput_ratios(rounds: list[list[Level]]) -> dict[float, Spread]:
    first = [levels[0].goodput for levels in rounds]
    columns = [[levels[index] for levels in rounds] for index in range(1, len(rounds[0]))]
    return {column[0].level: paired_ratio([level.goodput for level in column], first) for column in columns}


def _words(level: Level) -> str:
    refused = ", ".join(f"{count} {name}" for name, count in level.refused.items())
    true = ", ".join(
        f"{hints.true_share:.0%} of {name}" for name, hints in level.hints.items() if hints.count
    )
    return (
        f"{level.level:g} times capacity: goodput {level.goodput:.1f} tokens/s, {level.completed} of {level.sent} "
        f"completed, refused {refused}; true hints {true or 'none'}"
    )


def _tables(figures: OverloadFigures) -> list[Table]:
    sizes = figures.sizes
    rows = [
        (
            f"{level.level:g}",
            str(number),
            f"{level.goodput:.1f}",
            f"{level.goodput / levels[0].goodput:.3f}",
            f"{level.goodput / figures.capacity.tokens_per_s:.3f}",
            f"{level.wasted:.1f}",
            str(level.sent),
            str(level.completed),
            str(level.late),
            str(level.displaced),
            *(str(level.refused[name]) for name in REASONS),
            _figure(level.refusal_p50_ms, 2),
            _figure(level.refusal_p99_ms, 2),
        )
        for number, levels in enumerate(figures.rounds, 1)
        for level in levels
    ]
    load = Table(
        f"Load against a capacity of {figures.capacity.tokens_per_s:.1f} tokens/s in answers of {sizes.answer_tokens} tokens: "
        f"a batch of {sizes.batch}, a queue of {sizes.queue}, deadlines of {figures.deadlines_s[0]:.1f} and "
        f"{figures.deadlines_s[1]:.1f} s",
        (
            *(
                "times",
                "round",
                "goodput tokens/s",
                "ratio",
                "of capacity",
                "wasted tokens/s",
                "sent",
                "completed",
                "late",
            ),
            *("displaced", "refused: full", "refused: late", "in ms, p50", "p99"),
        ),
        rows,
    )
    return [load, _hints_table(figures)]


def _hints_table(figures: OverloadFigures) -> Table:
    rows = [
        (
            f"{level.level:g}",
            str(number),
            name,
            str(hints.count),
            f"{hints.true_share:.3f}",
            f"{hints.of_begins_share:.3f}",
            _figure(hints.truth_p50_ms, 0),
            _figure(hints.ratio_p05, 2),
            _figure(hints.ratio_p50, 2),
            _figure(hints.ratio_p95, 2),
        )
        for number, levels in enumerate(figures.rounds, 1)
        for level in levels
        for name, hints in level.hints.items()
        if hints.count
    ]
    return Table(
        "retry_after_ms against the time until all that had been accepted before was answered; and until it had begun",
        (
            *("times", "round", "refused as", "refusals", "within a factor of 2", "of the begins"),
            "truth p50 ms",
            *("hint/truth p05", "p50", "p95"),
        ),
        rows,
    )


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _goals(figures: OverloadFigures) -> list[Goal]:
    runs = [level for levels in figures.rounds for level in levels]
    goals = [
        Goal(
            f"goodput at {level:g} times capacity, beside that at {figures.sizes.levels[0]:g}",
            ratio.median,
            GOAL_GOODPUT,
        )
        for level, ratio in figures.ratios.items()
    ]
    for number, level in enumerate(figures.sizes.levels):
        of_level = [levels[number] for levels in figures.rounds]
        waits_ms = [run.refusal_p50_ms for run in of_level if run.refusal_p50_ms is not None]
        if not waits_ms:
            continue
        name = f"at {level:g} times capacity"
        goals.append(
            Goal(f"median time of a refusal {name}, ms", median(waits_ms), GOAL_REFUSAL_MS, at_least=False)
        )
        goals.append(Goal(f"hints within a factor of two {name}", _true_share(of_level), GOAL_TRUE_SHARE))
    lost = sum(len(level.lost) for level in runs)
    return [*goals, Goal("requests lost", lost, 0, at_least=False)]


def _true_share(runs: list[Level]) -> float:
    """Of all refusals of these runs."""
    found = [hints for run in runs for hints in run.hints.values()]
    return sum(hints.true_share * hints.count for hints in found) / sum(hints.count for hints in found)
