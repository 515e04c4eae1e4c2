"""A crowd of streams at the pace of reading: what the supervisor adds to each token, and what each stream takes.

The workers are real but for their engine, which makes a token for each of its sequences in every step, as a batch
does; models step independently of each other. A token's way is timed from the end of its step to the client's reading
the bytes of its delta, both on the one monotonic clock.
"""

import gc
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import psutil

from mlxsup.protocol.client.sync import Client
from scripts.benchmarks.cli import child_command
from scripts.benchmarks.crowd import Crowd, Heard
from scripts.benchmarks.figures import quantile
from scripts.benchmarks.null_engine import Stepped
from scripts.benchmarks.report import Goal, Section, Table
from scripts.benchmarks.supervisor_child import (
    MODEL,
    Say,
    SupervisorChild,
    processor_s,
    running_supervisor,
    wait_quiet,
)

GOAL_P50_MS = 0.5
GOAL_P99_MS = 5.0
GOAL_STREAM_KB = 20.0
_JITTER = 0.2
_END_S = 60.0
_WARM_UP_TOKENS = 8


class StreamsSizes(msgspec.Struct, frozen=True):
    """`settle_s` passes from the requests to the `seconds` that are measured."""

    models: int
    streams: int
    connections: int
    tokens_per_s: float
    settle_s: float
    seconds: float


class StreamsFigures(msgspec.Struct, frozen=True):
    """Latencies in milliseconds; memory is the supervisor's resident growth at the end; processor times are shares of
    one core, those of the `others` neither the supervisor's, the workers' nor this client's; `token_us` is the supervisor's for
    each token.
    """

    sizes: StreamsSizes
    tokens: int
    lost_tokens: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    stream_kb: float
    tokens_a_stream: float
    supervisor_share: float
    workers_share: float
    others_share: float
    token_us: float


def measure_streams(sizes: StreamsSizes, seed: int, say: Say) -> Section:
    names = [f"model-{number}" for number in range(sizes.models)]
    batch = -(-sizes.streams // sizes.models)
    tables: dict[str, dict[str, Any]] = {
        "server": {"in_flight_requests_max": -(-sizes.streams // sizes.connections)},
        "worker": {"command": child_command("null-worker"), "spares": 0},
        **{f"models.{name}": {"source": MODEL, "batch_sequences_max": batch} for name in names},
    }
    with (
        tempfile.TemporaryDirectory(prefix="mlxsup-bench-") as folder,
        running_supervisor(Path(folder), tables) as child,
    ):
        _load(child, names, seed, say)
        figures = _measure(child, sizes, names, seed, say)
    goals = [
        Goal("added latency of a token, p50, ms", figures.p50_ms, GOAL_P50_MS, at_least=False),
        Goal("added latency of a token, p99, ms", figures.p99_ms, GOAL_P99_MS, at_least=False),
        Goal("memory per stream, kB", figures.stream_kb, GOAL_STREAM_KB, at_least=False),
        Goal("tokens lost", figures.lost_tokens, 0, at_least=False),
    ]
    return Section("streams", figures, [_table(figures)], goals)


def _load(child: SupervisorChild, names: list[str], seed: int, say: Say) -> None:
    """And warm up: one short stream of each model, so that what is imported or built once is no stream's memory."""
    with Client.connect(child.socket) as client:
        client.call("model/pull", {"model": MODEL})
    say(f"loading {len(names)} models")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(partial(_load_one, child.socket), names))
    order = _order(seed, 1000.0)
    with Crowd(child.socket, 1) as crowd:
        crowd.ask([_params(name, order, _WARM_UP_TOKENS) for name in names])
        crowd.listen(1.0)
        crowd.hang_up(_END_S)


def _load_one(socket: Path, name: str) -> None:
    with Client.connect(socket) as client:
        client.call("model/load", {"model": name})


def _measure(
    child: SupervisorChild, sizes: StreamsSizes, names: list[str], seed: int, say: Say
) -> StreamsFigures:
    streams = []
    tokens = round(sizes.tokens_per_s * (1 + _JITTER) * (sizes.settle_s + sizes.seconds + _END_S))
    for number in range(sizes.streams):
        model = number % sizes.models
        order = _order(seed + model, sizes.tokens_per_s)
        streams.append(_params(names[model], order, tokens))
    workers = child.workers()
    wait_quiet([child.process, *workers])
    resident = child.process.memory_info().rss
    # A collection of garbage among all that is kept here would be a pause of the client's own.
    gc.disable()
    with Crowd(child.socket, sizes.connections) as crowd:
        crowd.ask(streams)
        say(f"{sizes.streams} streams of {sizes.models} models, on {sizes.connections} connections")
        crowd.listen(sizes.settle_s)
        began = _look(child, workers, resident)
        crowd.listen(sizes.seconds)
        ended = _look(child, workers, resident)
        say("cancelling them")
        heard = crowd.hang_up(_END_S)
    gc.enable()
    return evaluate(sizes, heard, began, ended)


def _order(seed: int, tokens_per_s: float) -> Stepped:
    step_ms = 1000 / tokens_per_s
    return Stepped(seed, step_ms * (1 - _JITTER), step_ms * (1 + _JITTER))


def _params(model: str, order: Stepped, tokens: int) -> dict[str, Any]:
    return {"model": model, "prompt": msgspec.json.encode(order).decode(), "max_tokens": tokens}


class Look(msgspec.Struct, frozen=True):
    """How things stand at a moment of the monotonic clock; `grown_bytes` is what the supervisor has grown by then."""

    moment_ns: int
    supervisor_s: float
    workers_s: float
    client_s: float
    machine_s: float
    grown_bytes: int


def _look(child: SupervisorChild, workers: list[psutil.Process], resident: int) -> Look:
    return Look(
        moment_ns=time.monotonic_ns(),
        supervisor_s=processor_s(child.process),
        workers_s=sum(map(processor_s, workers)),
        client_s=time.process_time(),
        machine_s=_machine_s(),
        grown_bytes=child.process.memory_info().rss - resident,
    )


def _machine_s() -> float:
    """Processor time that all processes of this machine have used."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


def evaluate(sizes: StreamsSizes, heard: list[Heard], began: Look, ended: Look) -> StreamsFigures:
    """What is measured are the tokens that were made between the two looks.

    Raises:
        RuntimeError: a stream had not begun at the first look, so that there were never so many together.
    """
    ages_ms = []
    tokens = lost = 0
    for stream in heard:
        assert stream.result is not None
        stamps = [(read_ns, int(stamp)) for read_ns, text in stream.deltas for stamp in text.split()]
        if not stamps or stamps[0][1] > began.moment_ns:
            raise RuntimeError("not all streams had begun in time: give them longer to settle")
        tokens += sum(made_ns <= ended.moment_ns for _, made_ns in stamps)
        lost += stream.result.usage.completion_tokens - len(stamps)
        ages_ms += [
            (read_ns - made_ns) / 1e6
            for read_ns, made_ns in stamps
            if began.moment_ns <= made_ns < ended.moment_ns
        ]
    seconds = (ended.moment_ns - began.moment_ns) / 1e9
    supervisor_s = ended.supervisor_s - began.supervisor_s
    workers_s = ended.workers_s - began.workers_s
    others_s = (
        ended.machine_s - began.machine_s - supervisor_s - workers_s - (ended.client_s - began.client_s)
    )
    return StreamsFigures(
        sizes=sizes,
        tokens=len(ages_ms),
        lost_tokens=lost,
        p50_ms=quantile(ages_ms, 0.5),
        p90_ms=quantile(ages_ms, 0.9),
        p99_ms=quantile(ages_ms, 0.99),
        max_ms=max(ages_ms),
        stream_kb=max(began.grown_bytes, ended.grown_bytes) / len(heard) / 1e3,
        tokens_a_stream=tokens / len(heard),
        supervisor_share=supervisor_s / seconds,
        workers_share=workers_s / seconds,
        others_share=others_s / seconds,
        token_us=supervisor_s * 1e6 / len(ages_ms),
    )


def _table(figures: StreamsFigures) -> Table:
    sizes = figures.sizes
    return Table(
        f"{sizes.streams} streams at {sizes.tokens_per_s:g} tokens/s on {sizes.connections} connections, of "
        f"{sizes.models} models whose workers compute nothing, {sizes.seconds:g} s",
        (
            "",
            "tokens",
            "p50 ms",
            "p90 ms",
            "p99 ms",
            "max ms",
            "kB/stream",
            "its tokens",
            "cores",
            "others'",
            "us/token",
        ),
        [
            (
                "supervisor",
                str(figures.tokens),
                f"{figures.p50_ms:.3f}",
                f"{figures.p90_ms:.3f}",
                f"{figures.p99_ms:.3f}",
                f"{figures.max_ms:.3f}",
                f"{figures.stream_kb:.1f}",
                f"{figures.tokens_a_stream:.0f}",
                f"{figures.supervisor_share:.2f}",
                f"{figures.others_share:.2f}",
                f"{figures.token_us:.1f}",
            )
        ],
    )
