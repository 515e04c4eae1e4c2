"""Supervisors as `mlxsup top` sees them, with everything that a test does not care about filled in."""

from collections.abc import Mapping
from typing import Any

from mlxsup.protocol.generation import Priority
from mlxsup.protocol.service import (
    Activity,
    Counters,
    MemoryStats,
    ModelEntry,
    Quantiles,
    Recent,
    SloStats,
    Stats,
    SupervisorStats,
    WorkerCounters,
)
from mlxsup.supervisor.cli.top_rates import Sight

NOTHING = Quantiles(count=0, p50=0.0, p90=0.0, p99=0.0, max=0.0)


def quantiles(p50: float, p99: float) -> Quantiles:
    return Quantiles(count=10, p50=p50, p90=p99, p99=p99, max=p99)


def counters(
    *,
    prompt: int = 0,
    completion: int = 0,
    ended: int = 0,
    refused: int = 0,
    resumed: int = 0,
    queued: int = 0,
    recent: Recent | None = None,
) -> Counters:
    return Counters(
        requests_total=ended,
        requests_active=0,
        requests_queued=queued,
        requests_resumed=resumed,
        ended={"stop": ended} if ended else {},
        prompt_tokens_total=prompt,
        completion_tokens_total=completion,
        ttft_ms=NOTHING,
        queue_ms=NOTHING,
        inter_token_ms=NOTHING,
        refused={"overloaded": refused} if refused else {},
        recent=recent or Recent(window_s=60.0, ttft_ms=NOTHING, inter_token_ms=NOTHING),
    )


def activity(
    running: Mapping[Priority, int] | None = None,
    queued: Mapping[Priority, int] | None = None,
    *,
    again: int = 0,
    reserved_bytes: int = 0,
    residency: str = "out",
    quarantined: int = 0,
) -> Activity:
    return Activity(
        running={tier.value: (running or {}).get(tier, 0) for tier in Priority},
        queued={tier.value: (queued or {}).get(tier, 0) for tier in Priority},
        queued_again=again,
        reserved_bytes=reserved_bytes,
        residency=residency,
        quarantined_requests=quarantined,
    )


def entry(name: str = "m", **changes: Any) -> ModelEntry:
    facts: dict[str, Any] = {
        "name": name,
        "state": "ready",
        "reason": None,
        "pid": 4711,
        "generation": 3,
        "memory_bytes": 693_000_000,
        "pinned": False,
        "pulled": True,
        "breaker": "closed",
    }
    return ModelEntry(**facts | changes)


def stats(
    uptime_s: float = 100.0,
    *,
    overall: Counters | None = None,
    models: dict[str, Counters] | None = None,
    priorities: dict[str, Counters] | None = None,
    workers: dict[str, WorkerCounters] | None = None,
    slo: dict[str, dict[str, list[SloStats]]] | None = None,
    activities: dict[str, Activity] | None = None,
    memory: MemoryStats | None = None,
) -> Stats:
    return Stats(
        supervisor=SupervisorStats(uptime_s=uptime_s, resident_bytes=62_000_000, connections=2),
        overall=overall or counters(),
        models=models or {},
        priorities=priorities or {},
        workers=workers or {},
        slo=slo or {},
        activity=activities or {},
        memory=memory,
    )


def sight(*models: ModelEntry, of: Stats | None = None) -> Sight:
    return Sight(stats=of or stats(), models=list(models))
