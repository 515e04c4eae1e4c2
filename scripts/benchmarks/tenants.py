"""Two clients of one tier, of which one sends ten times as much as the other, and more than the model can do.

What the small one has to expect beside the big one is held against two things. Alone it mostly has the batch for itself,
and an answer in a full batch takes longer than that whoever shares it. So there is also a batch that the small one keeps
full by itself, without ever waiting for a place: what the big one adds to that is what a scheduler is to blame for.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import trio

from mlxsup.protocol.client.aio import Client, connect
from scripts.benchmarks.figures import Spread, paired_ratio, quantile
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
from scripts.benchmarks.workload import WORKLOADS, Workload, texts

GOAL_RATIO = 1.3
_LIMIT_S = 300.0
# In a closed loop, beyond the batch: who comes next waits already.
_NEXT = 4
_SMALL, _BIG = "small", "big"


class TenantsSizes(msgspec.Struct, frozen=True):
    """`load` is the big one's, in multiples of capacity, and `times` that of the small one's. `settle_s` pass before
    anything under load is measured, for `seconds`.
    """

    rounds: int
    load: float
    times: float
    batch: int
    client_queue: int
    prompt_tokens: int
    answer_tokens: int
    settle_s: float
    seconds: float


class Service(msgspec.Struct, frozen=True):
    """What the small one got in one phase, in milliseconds from sending."""

    answered: int
    refused: int
    queue_p95_ms: float
    ttft_p50_ms: float
    ttft_p95_ms: float
    total_p50_ms: float
    total_p95_ms: float


class Round(msgspec.Struct, frozen=True):
    """Rates are tokens of answers a second, beside each other."""

    alone: Service
    full_batch: Service
    beside: Service
    small_tokens_per_s: float
    big_tokens_per_s: float
    big_refused: int
    lost: list[str]


class Ratios(msgspec.Struct, frozen=True):
    """Of p95s beside the big one to those of another phase."""

    ttft: Spread
    total: Spread


class TenantsFigures(msgspec.Struct, frozen=True):
    sizes: TenantsSizes
    capacity: Capacity
    rounds: list[Round]
    to_alone: Ratios
    to_full_batch: Ratios


def measure_tenants(part: str, sizes: TenantsSizes, seed: int, say: Say) -> Section:
    workload = WORKLOADS[part]()
    model = {"batch_sequences_max": sizes.batch, "queue_client_requests_max": sizes.client_queue}
    with supervisor_child(worker=workload.worker, model=model) as child:
        child.load_model(say)
        figures = trio.run(_measure, child.socket, workload, sizes, seed, say)
    return Section(f"tenants_{part}", figures, _tables(figures), _goals(figures))


async def _measure(
    socket: Path, workload: Workload, sizes: TenantsSizes, seed: int, say: Say
) -> TenantsFigures:
    async with connect(socket) as small, connect(socket) as big:
        say("measuring capacity")
        capacity = await measure_capacity(
            big,
            texts(workload, seed, sizes.prompt_tokens, sizes.answer_tokens, client=_BIG),
            streams=sizes.batch + _NEXT,
            settle_s=sizes.settle_s,
            seconds=sizes.seconds,
            limit_s=_LIMIT_S,
        )
        say(f"capacity: {capacity.tokens_per_s:.1f} tokens/s, {capacity.requests_per_s:.2f} requests/s")
        rounds = []
        for number in range(sizes.rounds):
            round_seed = random.Random(f"round {seed} {number}").randrange(2**31)
            rounds.append(await _Round(small, big, workload, capacity, sizes, round_seed).run())
            say(f"round {number + 1} of {sizes.rounds}: {_words(rounds[-1])}")
    return summarize(sizes, capacity, rounds)


class _Round:
    def __init__(
        self,
        small: Client,
        big: Client,
        workload: Workload,
        capacity: Capacity,
        sizes: TenantsSizes,
        seed: int,
    ) -> None:
        self._small = small
        self._big = Traffic(big, _LIMIT_S)
        self._workload = workload
        self._rate_per_s = sizes.load * capacity.requests_per_s
        self._sizes = sizes
        self._seed = seed

    async def run(self) -> Round:
        sizes, big = self._sizes, self._big
        alone = await self._small_arrives()
        full, full_span = await self._small_fills_the_batch()
        async with big.arriving(poisson(self._rate_per_s, self._seed + 1), self._texts(_BIG)):
            await trio.sleep(sizes.settle_s)
            since_s = trio.current_time()
            beside = await self._small_arrives()
            until_s = since_s + sizes.seconds
        of_full = [asked for asked in full.asked if full_span[0] <= asked.sent_s < full_span[1]]
        return Round(
            alone=summarize_service(alone.asked),
            full_batch=summarize_service(of_full),
            beside=summarize_service(beside.asked),
            small_tokens_per_s=tokens_per_s(beside.asked, since_s, until_s),
            big_tokens_per_s=tokens_per_s(big.asked, since_s, until_s),
            big_refused=sum(asked.is_refused for asked in big.asked),
            lost=faults([*alone.asked, *full.asked, *beside.asked, *big.asked]),
        )

    async def _small_arrives(self) -> Traffic:
        """At the same moments with the same prompts in both phases of a round."""
        sizes = self._sizes
        traffic = Traffic(self._small, _LIMIT_S)
        gaps_s = poisson(self._rate_per_s / sizes.times, self._seed)
        async with traffic.arriving(gaps_s, self._texts(_SMALL)):
            await trio.sleep(sizes.seconds)
        return traffic

    async def _small_fills_the_batch(self) -> tuple[Traffic, tuple[float, float]]:
        sizes = self._sizes
        traffic = Traffic(self._small, _LIMIT_S)
        async with traffic.keeping(sizes.batch, self._texts(_SMALL)):
            await trio.sleep(sizes.settle_s)
            since_s = trio.current_time()
            await trio.sleep(sizes.seconds)
            until_s = trio.current_time()
        return traffic, (since_s, until_s)

    def _texts(self, client: str) -> Iterator[Order]:
        sizes = self._sizes
        seed = self._seed + (client == _BIG)
        return texts(self._workload, seed, sizes.prompt_tokens, sizes.answer_tokens, client=client)


def summarize_service(all_asked: list[Asked]) -> Service:
    """Raises RuntimeError when none was answered."""
    done = answered(all_asked)
    if not done:
        raise RuntimeError("no request of the small client was answered: measure for longer")
    ttfts_ms = [asked.ttft_ms for asked in done]
    totals_ms = [asked.total_ms for asked in done]
    return Service(
        answered=len(done),
        refused=sum(asked.is_refused for asked in all_asked),
        queue_p95_ms=quantile([asked.result.timings.queue_ms for asked in done if asked.result], 0.95),
        ttft_p50_ms=quantile(ttfts_ms, 0.5),
        ttft_p95_ms=quantile(ttfts_ms, 0.95),
        total_p50_ms=quantile(totals_ms, 0.5),
        total_p95_ms=quantile(totals_ms, 0.95),
    )


def summarize(sizes: TenantsSizes, capacity: Capacity, rounds: list[Round]) -> TenantsFigures:
    return TenantsFigures(
        sizes=sizes,
        capacity=capacity,
        rounds=rounds,
        to_alone=_ratios(rounds, [round.alone for round in rounds]),
        to_full_batch=_ratios(rounds, [round.full_batch for round in rounds]),
    )


def _ratios(rounds: list[Round], others: list[Service]) -> Ratios:
    beside = [round.beside for round in rounds]
    return Ratios(
        ttft=paired_ratio([one.ttft_p95_ms for one in beside], [other.ttft_p95_ms for other in others]),
        total=paired_ratio([one.total_p95_ms for one in beside], [other.total_p95_ms for other in others]),
    )


def _words(round: Round) -> str:
    return (
        f"the small one's p95 alone, in a full batch, and beside the big one: first token {round.alone.ttft_p95_ms:.0f}, "
        f"{round.full_batch.ttft_p95_ms:.0f}, {round.beside.ttft_p95_ms:.0f} ms; whole answer "
        f"{round.alone.total_p95_ms:.0f}, {round.full_batch.total_p95_ms:.0f}, {round.beside.total_p95_ms:.0f} ms"
    )


def _tables(figures: TenantsFigures) -> list[Table]:
    sizes = figures.sizes
    rows = []
    for number, round in enumerate(figures.rounds, 1):
        phases = {"alone": round.alone, "full batch of its own": round.full_batch, "beside": round.beside}
        for name, found in phases.items():
            rows.append(
                (
                    name,
                    str(number),
                    str(found.answered),
                    str(found.refused),
                    f"{found.queue_p95_ms:.0f}",
                    f"{found.ttft_p50_ms:.0f}",
                    f"{found.ttft_p95_ms:.0f}",
                    f"{found.total_p50_ms:.0f}",
                    f"{found.total_p95_ms:.0f}",
                )
            )
    small = Table(
        f"The small client, in ms: a capacity of {figures.capacity.tokens_per_s:.1f} tokens/s, the big one sends "
        f"{sizes.load:g} times as much and the small one {sizes.load / sizes.times:g}; answers of {sizes.answer_tokens} "
        f"tokens, a batch of {sizes.batch}",
        (
            *("", "round", "answered", "refused", "queue p95", "first token p50", "p95"),
            *("whole answer p50", "p95"),
        ),
        rows,
    )
    return [small, _ratios_table(figures)]


def _ratios_table(figures: TenantsFigures) -> Table:
    rows = []
    for number, round in enumerate(figures.rounds, 1):
        for name, other in (("alone", round.alone), ("full batch of its own", round.full_batch)):
            rows.append(
                (
                    name,
                    str(number),
                    f"{round.beside.ttft_p95_ms / other.ttft_p95_ms:.2f}",
                    f"{round.beside.total_p95_ms / other.total_p95_ms:.2f}",
                    f"{round.small_tokens_per_s:.1f}",
                    f"{round.big_tokens_per_s:.1f}",
                    str(round.big_refused),
                )
            )
    return Table(
        "Beside the big one, in multiples of another phase; tokens/s are those beside each other",
        (
            *("of", "round", "first token p95", "whole answer p95", "small tokens/s", "big tokens/s"),
            "the big one's refused",
        ),
        rows,
    )


def _goals(figures: TenantsFigures) -> list[Goal]:
    rounds = figures.rounds
    refused = sum(round.alone.refused + round.full_batch.refused + round.beside.refused for round in rounds)
    bounds = {
        "first token p95, beside that alone": figures.to_alone.ttft,
        "whole answer p95, beside that alone": figures.to_alone.total,
        "first token p95, beside that in a full batch of its own": figures.to_full_batch.ttft,
        "whole answer p95, beside that in a full batch of its own": figures.to_full_batch.total,
    }
    return [
        *(Goal(name, ratio.median, GOAL_RATIO, at_least=False) for name, ratio in bounds.items()),
        Goal("the small one's requests refused", refused, 0, at_least=False),
        Goal("requests lost", sum(len(round.lost) for round in rounds), 0, at_least=False),
    ]
