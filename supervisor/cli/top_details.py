"""What `mlxsup top` says of a model below its row, where there is something to say. Pure."""

from rich.text import Text

from mlxsup.protocol.service import Activity, ModelEntry, SloStats, Stats
from mlxsup.supervisor.cli.model_table import breaker_word
from mlxsup.supervisor.cli.render import counted, size
from mlxsup.supervisor.cli.top_columns import clean
from mlxsup.supervisor.pool.lifecycle import WorkerState
from mlxsup.supervisor.qos.policy import State as SloState
from mlxsup.supervisor.recovery.breaker import BreakerState
from mlxsup.supervisor.residency.tenant import Phase

_INDENT = "  "


def details(stats: Stats, model: ModelEntry) -> list[Text]:
    """Who is computed and who waits, what went wrong, why it does not serve, which objectives are broken."""
    lines = []
    activity = stats.activity.get(model.name)
    if activity is not None:
        lines += _crowd(activity)
        if activity.reserved_bytes or activity.residency == Phase.WAITING:
            lines.append(_held(activity, model))
    lines += _troubles(stats, model)
    if model.reason:
        lines.append(Text(f"{_INDENT}{clean(model.reason)}", "red" if _is_down(model) else "yellow"))
    for tier, objectives in stats.slo.get(model.name, {}).items():
        lines += [_objective(tier, one) for one in objectives if one.state != SloState.OK]
    return lines


def _crowd(activity: Activity) -> list[Text]:
    running, queued = _by_tier(activity.running), _by_tier(activity.queued)
    if not running and not queued:
        return []
    parts = [f"run {running}"] if running else []
    if queued:
        parts.append(f"wait {queued}{f' ({activity.queued_again} again)' if activity.queued_again else ''}")
    return [Text(f"{_INDENT}{'; '.join(parts)}")]


def _by_tier(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {clean(tier)}" for tier, count in counts.items() if count)


def _held(activity: Activity, model: ModelEntry) -> Text:
    if activity.residency == Phase.WAITING:
        return Text(f"{_INDENT}waits for memory", "yellow")
    worker = f"; worker {model.generation} is process {model.pid}" if model.pid else ""
    return Text(f"{_INDENT}{size(activity.reserved_bytes)} kept ({clean(activity.residency)}){worker}", "dim")


def _troubles(stats: Stats, model: ModelEntry) -> list[Text]:
    workers, counters = stats.workers.get(model.name), stats.models.get(model.name)
    activity = stats.activity.get(model.name)
    parts = []
    if model.breaker != BreakerState.CLOSED:
        parts.append(f"breaker {breaker_word(model)}")
    if workers and workers.deaths:
        classes = ", ".join(f"{count} {clean(name)}" for name, count in sorted(workers.deaths.items()))
        parts.append(f"died: {classes}; {counted(workers.restarts, 'restart')}")
    if counters and counters.requests_resumed:
        parts.append(f"{counters.requests_resumed} resumed")
    if activity and activity.quarantined_requests:
        parts.append(f"{activity.quarantined_requests} quarantined")
    return [Text(f"{_INDENT}{'; '.join(parts)}", "yellow")] if parts else []


def _is_down(model: ModelEntry) -> bool:
    return model.state in {WorkerState.FAILED, WorkerState.QUARANTINED, WorkerState.BACKOFF}


def _objective(tier: str, objective: SloStats) -> Text:
    figure = "-" if objective.figure is None else f"{objective.figure:.3g}"
    in_force = f": {', '.join(objective.in_force)}" if objective.in_force else ""
    return Text(
        f"{_INDENT}{clean(tier)} {objective.objective} {figure}, is to be {objective.limit:.3g}; "
        f"{objective.state}{clean(in_force)}",
        "red" if objective.state == SloState.ACTING else "yellow",
    )
