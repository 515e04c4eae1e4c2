"""Everything but the computing: worker, supervisor and client around an engine that gives tokens for nothing."""

import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil
import trio

from mlxsup.protocol.client import aio, sync
from scripts.benchmarks.cli import child_command
from scripts.benchmarks.figures import Spread, quantile
from scripts.benchmarks.load import Run, run_streams
from scripts.benchmarks.null_engine import Flood, Paced, flood_text
from scripts.benchmarks.report import Goal, Section, Table
from scripts.benchmarks.supervisor_child import (
    MODEL,
    Say,
    SupervisorChild,
    processor_s,
    supervisor_child,
    wait_quiet,
)

GOAL_TOKENS_PER_S = 300_000
GOAL_LATENCY_MS = 0.5
_LEAST_MS = 1.0
_MOST_MS = 5.0
_WARM_UP_TOKENS = 64


class NullSizes(msgspec.Struct, frozen=True):
    rounds: int
    streams: int
    tokens: int
    paced_tokens: int


class FloodRound(msgspec.Struct, frozen=True):
    """`deltas` counts the notifications in which the tokens came; the others are processor time for each token."""

    tokens: int
    seconds: float
    tokens_per_s: float
    deltas: int
    worker_us: float
    supervisor_us: float
    client_us: float


class Latency(msgspec.Struct, frozen=True):
    """From the moment at which the engine's step returned to the client's having the text, in milliseconds."""

    client: str
    tokens: int
    median_ms: float
    p99_ms: float
    medians_ms: Spread


class NullFigures(msgspec.Struct, frozen=True):
    sizes: NullSizes
    rounds: list[FloodRound]
    tokens_per_s: Spread
    latencies: list[Latency]


def measure_null(sizes: NullSizes, seed: int, say: Say) -> Section:
    worker = {"command": child_command("null-worker")}
    say("starting a supervisor whose worker computes nothing")
    with supervisor_child(worker=worker, model={"batch_sequences_max": sizes.streams}) as child:
        child.load_model(say)
        _flood(child, sizes, _WARM_UP_TOKENS, seed)
        rounds = []
        for number in range(sizes.rounds):
            rounds.append(_flood(child, sizes, sizes.tokens, seed + number))
            say(f"{sizes.streams} streams: {rounds[-1].tokens_per_s:,.0f} tokens/s")
        latencies = _latencies(child, sizes, seed, say)
    figures = NullFigures(sizes, rounds, Spread.of([round.tokens_per_s for round in rounds]), latencies)
    return Section("null_engine", figures, _tables(figures), _goals(figures))


def _flood(child: SupervisorChild, sizes: NullSizes, tokens: int, seed: int) -> FloodRound:
    processes = [child.serving(), child.process, psutil.Process()]
    wait_quiet([child.process, *child.workers()])
    orders = [Flood(seed + stream) for stream in range(sizes.streams)]
    before = list(map(processor_s, processes))
    run = run_streams(child.socket, [msgspec.json.encode(order).decode() for order in orders], tokens)
    after = list(map(processor_s, processes))
    _check(run, orders, tokens)
    worker_us, supervisor_us, client_us = (
        (end - start) * 1e6 / run.tokens for start, end in zip(before, after, strict=True)
    )
    return FloodRound(
        tokens=run.tokens,
        seconds=run.seconds,
        tokens_per_s=run.tokens_per_s,
        deltas=sum(answer.pieces for answer in run.answers),
        worker_us=worker_us,
        supervisor_us=supervisor_us,
        client_us=client_us,
    )


def _check(run: Run, orders: list[Flood], tokens: int) -> None:
    """Every token has arrived, as text, in order, and is counted."""
    for order, answer in zip(orders, run.answers, strict=True):
        expected = flood_text(order.seed, tokens)
        usage = answer.result.usage
        if (answer.text, answer.result.text, usage.completion_tokens) != (expected, expected, tokens):
            raise RuntimeError(f"the stream of seed {order.seed} is not what the engine gave")


def _latencies(child: SupervisorChild, sizes: NullSizes, seed: int, say: Say) -> list[Latency]:
    clients: dict[str, Callable[[Path, str, int], list[float]]] = {
        "blocking client": _blocking_latencies,
        "Trio client": lambda *arguments: trio.run(_trio_latencies, *arguments),
    }
    found: dict[str, list[list[float]]] = {name: [] for name in clients}
    for number in range(sizes.rounds):
        order = Paced(seed + number, _LEAST_MS, _MOST_MS)
        for name, measure in clients.items():
            wait_quiet([child.process, *child.workers()])
            values = measure(child.socket, msgspec.json.encode(order).decode(), sizes.paced_tokens)
            if len(values) != sizes.paced_tokens:
                raise RuntimeError(f"{sizes.paced_tokens} tokens were asked for, {len(values)} came")
            found[name].append(values)
            say(f"a lone token, {name}: median {quantile(values, 0.5):.3f} ms")
    return [_latency(name, rounds) for name, rounds in found.items()]


def _latency(client: str, rounds: list[list[float]]) -> Latency:
    values = [value for round in rounds for value in round]
    return Latency(
        client=client,
        tokens=len(values),
        median_ms=quantile(values, 0.5),
        p99_ms=quantile(values, 0.99),
        medians_ms=Spread.of([quantile(round, 0.5) for round in rounds]),
    )


def _params(prompt: str, tokens: int) -> dict[str, object]:
    return {"model": MODEL, "prompt": prompt, "max_tokens": tokens}


def _blocking_latencies(socket: Path, prompt: str, tokens: int) -> list[float]:
    values = []
    with sync.Client.connect(socket) as client:
        for piece in client.stream("generate", _params(prompt, tokens)):
            values += _ages_ms(piece)
    return values


async def _trio_latencies(socket: Path, prompt: str, tokens: int) -> list[float]:
    values = []
    async with aio.connect(socket) as client, client.stream("generate", _params(prompt, tokens)) as stream:
        async for piece in stream:
            values += _ages_ms(piece)
    return values


def _ages_ms(piece: str) -> list[float]:
    # One clock for all processes of a machine, on Linux and on macOS.
    now_ns = time.monotonic_ns()
    return [(now_ns - int(stamp)) / 1e6 for stamp in piece.split()]


def _tables(figures: NullFigures) -> list[Table]:
    sizes = figures.sizes
    rows = [
        (
            str(number),
            f"{round.tokens_per_s:,.0f}",
            f"{round.tokens / round.deltas:.1f}",
            f"{round.worker_us:.2f}",
            f"{round.supervisor_us:.2f}",
            f"{round.client_us:.2f}",
        )
        for number, round in enumerate(figures.rounds, 1)
    ]
    flood = Table(
        f"An engine that computes nothing, {sizes.streams} streams of {sizes.tokens} tokens, end to end",
        ("round", "tokens/s", "tokens a delta", "worker us/token", "supervisor us/token", "client us/token"),
        rows,
    )
    latency = Table(
        f"A lone token from the worker to the client, one every {_LEAST_MS:g} to {_MOST_MS:g} ms",
        ("", "tokens", "median ms", "p99 ms", "medians of the rounds"),
        [
            (
                found.client,
                str(found.tokens),
                f"{found.median_ms:.3f}",
                f"{found.p99_ms:.3f}",
                f"{found.medians_ms.min:.3f} to {found.medians_ms.max:.3f}",
            )
            for found in figures.latencies
        ],
    )
    return [flood, latency]


def _goals(figures: NullFigures) -> list[Goal]:
    goals = [Goal("tokens/s without computing", figures.tokens_per_s.median, GOAL_TOKENS_PER_S)]
    goals += [
        Goal(
            f"median latency of a lone token, {found.client}, ms",
            found.median_ms,
            GOAL_LATENCY_MS,
            at_least=False,
        )
        for found in figures.latencies
    ]
    return goals
