"""People and batch jobs at once: how soon people get their first token, and what is left for the jobs.

Each round has all that is compared, one after the other: interactive requests alone; then a background load of several
times capacity, at random moments, which goes on while for a while the same interactive requests come as well. What is
refused of that load is dropped. What the interactive ones take for themselves, whatever else runs, is seen while they are
alone: how much of the time any of them is being computed. Texts of the background are held against what they are when each is computed alone.
"""

from pathlib import Path

import msgspec
import trio

from mlxsup.protocol.client.aio import Client, connect
from mlxsup.protocol.generation import Priority
from scripts.benchmarks.catalogue import Catalogue, compute_alone, draw_orders, find_doubtful
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
    regular,
    tokens_per_s,
)
from scripts.benchmarks.workload import WORKLOADS, Workload, chats

GOAL_TTFT_RATIO = 1.5
GOAL_BACKGROUND_SHARE = 0.85
_LIMIT_S = 300.0
# In a closed loop, beyond the batch: who comes next waits already.
_NEXT = 4
_BACKGROUND = {"priority": Priority.BACKGROUND.value}
_INTERACTIVE = {"priority": Priority.INTERACTIVE.value}


class MixedSizes(msgspec.Struct, frozen=True):
    """Pairs are bounds. `settle_s` pass before capacity or a background is measured, which is measured for `seconds`
    alone and as long with interactive requests.
    """

    rounds: int
    load: float
    interactive_per_s: float
    batch: int
    queue: int
    texts: int
    prompt_tokens: tuple[int, int]
    answer_tokens: tuple[int, int]
    chat_prompt_tokens: int
    chat_answer_tokens: int
    settle_s: float
    seconds: float


class People(msgspec.Struct, frozen=True):
    """Interactive requests of one phase; `server_p95_ms` is the time to the first token as the server says it. For
    `busy_share` of the phase at least one of them was there.
    """

    answered: int
    refused: int
    prompt_tokens: float
    ttft_p50_ms: float
    ttft_p95_ms: float
    server_p95_ms: float
    tokens_per_s: float
    busy_share: float


class Round(msgspec.Struct, frozen=True):
    """Rates are of the background, in tokens a second: alone before and after the interactive requests, and with them.

    `kept_caches` of its answers went on from a cache that was kept while they gave way.
    """

    idle: People
    mixed: People
    background_alone: tuple[float, float]
    background_mixed: float
    background_answered: int
    background_refused: int
    kept_caches: int
    texts_differ: int
    lost: list[str]

    @property
    def alone(self) -> float:
        return sum(self.background_alone) / 2


class MixedFigures(msgspec.Struct, frozen=True):
    sizes: MixedSizes
    capacity: Capacity
    texts_left_out: int
    rounds: list[Round]
    ttft_ratio: Spread
    background_share: Spread


def measure_mixed(part: str, sizes: MixedSizes, seed: int, say: Say) -> Section:
    workload = WORKLOADS[part]()
    orders = draw_orders(workload, seed, sizes.texts, sizes.prompt_tokens, sizes.answer_tokens)
    model = {"batch_sequences_max": sizes.batch, "queue_requests_max": sizes.queue}
    with supervisor_child(worker=workload.worker, model=model) as child:
        folder = child.load_model(say)
        doubtful = find_doubtful(orders, folder, seed, say) if part == "model" else set()
        figures = trio.run(_measure, child.socket, workload, orders, doubtful, sizes, seed, say)
    return Section(f"mixed_{part}", figures, _tables(figures), _goals(figures))


async def _measure(
    socket: Path,
    workload: Workload,
    orders: list[Order],
    doubtful: set[int],
    sizes: MixedSizes,
    seed: int,
    say: Say,
) -> MixedFigures:
    async with connect(socket) as jobs, connect(socket) as people:
        catalogue = await compute_alone(jobs, orders, doubtful, _LIMIT_S, say)
        say(
            f"measuring capacity with {len(catalogue.orders)} texts; rounding decides {catalogue.left_out} others"
        )
        capacity = await measure_capacity(
            jobs,
            catalogue.drawn(seed, **_BACKGROUND),
            streams=sizes.batch + _NEXT,
            settle_s=sizes.settle_s,
            seconds=sizes.seconds,
            limit_s=_LIMIT_S,
        )
        say(f"capacity: {capacity.tokens_per_s:.1f} tokens/s, {capacity.requests_per_s:.2f} requests/s")
        rounds = []
        for number in range(sizes.rounds):
            run = _Round(jobs, people, workload, catalogue, capacity, sizes, seed + number)
            rounds.append(await run.run())
            say(f"round {number + 1} of {sizes.rounds}: {_words(rounds[-1])}")
    return summarize(sizes, capacity, catalogue.left_out, rounds)


class _Round:
    def __init__(
        self,
        jobs: Client,
        people: Client,
        workload: Workload,
        catalogue: Catalogue,
        capacity: Capacity,
        sizes: MixedSizes,
        seed: int,
    ) -> None:
        self._jobs = Traffic(jobs, _LIMIT_S)
        self._people = people
        self._workload = workload
        self._sizes = sizes
        self._seed = seed
        self._orders = catalogue.drawn(seed, **_BACKGROUND)
        self._gaps_s = poisson(sizes.load * capacity.requests_per_s, seed)

    async def run(self) -> Round:
        sizes = self._sizes
        idle, _ = await self._interactive()
        async with self._jobs.arriving(self._gaps_s, self._orders):
            await trio.sleep(sizes.settle_s)
            before = await self._span(sizes.seconds / 2)
            mixed, during = await self._interactive()
            after = await self._span(sizes.seconds / 2)
        jobs, people = self._jobs.asked, [*idle.asked, *mixed.asked]
        return Round(
            idle=summarize_people(idle.asked, sizes.seconds),
            mixed=summarize_people(mixed.asked, sizes.seconds),
            background_alone=(tokens_per_s(jobs, *before), tokens_per_s(jobs, *after)),
            background_mixed=tokens_per_s(jobs, *during),
            background_answered=len(answered(jobs)),
            background_refused=sum(asked.is_refused for asked in jobs),
            kept_caches=sum(asked.result.usage.cached_tokens > 0 for asked in jobs if asked.result),
            texts_differ=sum(asked.differs for asked in [*jobs, *people]),
            lost=faults([*jobs, *people]),
        )

    async def _interactive(self) -> tuple[Traffic, tuple[float, float]]:
        """The same requests in each phase of a round; and the time in which they came."""
        sizes = self._sizes
        traffic = Traffic(self._people, _LIMIT_S)
        orders = chats(
            self._workload, self._seed, sizes.chat_prompt_tokens, sizes.chat_answer_tokens, **_INTERACTIVE
        )
        async with traffic.arriving(regular(sizes.interactive_per_s), orders):
            span = await self._span(sizes.seconds)
        return traffic, span

    async def _span(self, seconds: float) -> tuple[float, float]:
        since_s = trio.current_time()
        await trio.sleep(seconds)
        return since_s, trio.current_time()


def summarize_people(all_asked: list[Asked], seconds: float) -> People:
    """Raises RuntimeError when none was answered."""
    done = answered(all_asked)
    if not done:
        raise RuntimeError("no interactive request was answered")
    ttfts_ms = [asked.ttft_ms for asked in done]
    servers_ms = [asked.result.timings.ttft_ms or 0.0 for asked in done if asked.result]
    return People(
        answered=len(done),
        refused=sum(asked.is_refused for asked in all_asked),
        prompt_tokens=sum(asked.result.usage.prompt_tokens for asked in done if asked.result) / len(done),
        ttft_p50_ms=quantile(ttfts_ms, 0.5),
        ttft_p95_ms=quantile(ttfts_ms, 0.95),
        server_p95_ms=quantile(servers_ms, 0.95),
        tokens_per_s=sum(asked.tokens for asked in done) / seconds,
        busy_share=min(1.0, _covered_s([(asked.sent_s, asked.ended_s) for asked in done]) / seconds),
    )


def _covered_s(spans: list[tuple[float, float]]) -> float:
    covered_s, until_s = 0.0, 0.0
    for began_s, ended_s in sorted(spans):
        covered_s += max(0.0, ended_s - max(began_s, until_s))
        until_s = max(until_s, ended_s)
    return covered_s


def summarize(sizes: MixedSizes, capacity: Capacity, left_out: int, rounds: list[Round]) -> MixedFigures:
    return MixedFigures(
        sizes=sizes,
        capacity=capacity,
        texts_left_out=left_out,
        rounds=rounds,
        ttft_ratio=paired_ratio(
            [round.mixed.ttft_p95_ms for round in rounds], [round.idle.ttft_p95_ms for round in rounds]
        ),
        background_share=paired_ratio(
            [round.background_mixed for round in rounds], [round.alone for round in rounds]
        ),
    )


def _words(round: Round) -> str:
    return (
        f"interactive p95 TTFT {round.idle.ttft_p95_ms:.0f} ms idle, {round.mixed.ttft_p95_ms:.0f} mixed; background "
        f"{round.alone:.1f} tokens/s alone, {round.background_mixed:.1f} mixed"
    )


def _tables(figures: MixedFigures) -> list[Table]:
    return [_people_table(figures), _background_table(figures)]


def _people_table(figures: MixedFigures) -> Table:
    sizes = figures.sizes
    rows = []
    for number, round in enumerate(figures.rounds, 1):
        for name, people in (("idle", round.idle), ("mixed", round.mixed)):
            ratio = "" if name == "idle" else f"{people.ttft_p95_ms / round.idle.ttft_p95_ms:.2f}"
            rows.append(
                (
                    name,
                    str(number),
                    str(people.answered),
                    str(people.refused),
                    f"{people.prompt_tokens:.0f}",
                    f"{people.ttft_p50_ms:.0f}",
                    f"{people.ttft_p95_ms:.0f}",
                    ratio,
                    f"{people.server_p95_ms:.0f}",
                )
            )
    return Table(
        f"{sizes.interactive_per_s:g} interactive requests a second, answers of {sizes.chat_answer_tokens} tokens; time to "
        "the first token",
        (
            *("", "round", "answered", "refused", "prompt tokens", "p50 ms", "p95 ms", "ratio"),
            "p95 ms, as the server says",
        ),
        rows,
    )


def _background_table(figures: MixedFigures) -> Table:
    rows = [
        (
            str(number),
            f"{round.background_alone[0]:.1f}",
            f"{round.background_alone[1]:.1f}",
            f"{round.background_mixed:.1f}",
            f"{round.background_mixed / round.alone:.3f}",
            f"{round.idle.busy_share:.3f}",
            str(round.background_answered),
            str(round.background_refused),
            str(round.kept_caches),
            "equal" if round.texts_differ == 0 else f"{round.texts_differ} DIFFER",
        )
        for number, round in enumerate(figures.rounds, 1)
    ]
    return Table(
        f"Background at {figures.sizes.load:g} times a capacity of {figures.capacity.tokens_per_s:.1f} tokens/s; tokens/s of "
        f"answers; {figures.texts_left_out} texts that rounding decides are left out",
        (
            *("round", "alone before", "alone after", "mixed", "share", "time of the interactive ones alone"),
            *("answered", "refused", "went on from a kept cache", "texts"),
        ),
        rows,
    )


def _goals(figures: MixedFigures) -> list[Goal]:
    rounds = figures.rounds
    lost = sum(len(round.lost) for round in rounds)
    refused = sum(round.idle.refused + round.mixed.refused for round in rounds)
    return [
        Goal(
            "interactive p95 TTFT, beside that on an idle machine",
            figures.ttft_ratio.median,
            GOAL_TTFT_RATIO,
            at_least=False,
        ),
        Goal(
            "background throughput, beside that alone", figures.background_share.median, GOAL_BACKGROUND_SHARE
        ),
        Goal("requests lost", lost, 0, at_least=False),
        Goal("interactive requests refused", refused, 0, at_least=False),
        Goal("texts that differ", sum(round.texts_differ for round in rounds), 0, at_least=False),
    ]
