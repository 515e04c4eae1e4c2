"""One frame of `mlxsup top`: the supervisor, its tiers, its models, cut to the terminal. Pure.

Rule 1: no line is wider than the terminal, counted in cells, and there are no more than it has rows. Rule 2: of a narrow one
the less important columns are left out, of a low one the tiers; models that have no room are counted. Rule 3: what is not
known is `-`, never a zero.
"""

from enum import StrEnum

import msgspec
from rich.text import Text

from mlxsup.protocol.generation import Priority
from mlxsup.protocol.service import ModelEntry, Stats
from mlxsup.supervisor.cli.model_table import state_word
from mlxsup.supervisor.cli.render import counted, size
from mlxsup.supervisor.cli.top_columns import Row, Table, span
from mlxsup.supervisor.cli.top_details import details
from mlxsup.supervisor.cli.top_rates import NO_RATE, Rate, Rates, Sight
from mlxsup.supervisor.pool.lifecycle import WorkerState
from mlxsup.supervisor.qos.policy import State as SloState

_TIERS_ROWS_MIN = 18
_BAR_CELLS = 20
_STYLES = {
    WorkerState.READY: "green",
    WorkerState.STOPPED: "dim",
    WorkerState.BACKOFF: "red",
    WorkerState.QUARANTINED: "red",
    WorkerState.FAILED: "red",
}


class Order(StrEnum):
    """Of the models; those that are equal stay as they are listed."""

    LISTED = "as listed"
    TOKENS = "by tokens"
    WAITING = "by who waits"
    MEMORY = "by memory"

    def next(self) -> "Order":
        orders = list(Order)
        return orders[(orders.index(self) + 1) % len(orders)]


class View(msgspec.Struct, frozen=True):
    """`lost` says why nothing newer is known. So many models as `skipped` are scrolled away."""

    sight: Sight
    rates: Rates | None
    order: Order = Order.LISTED
    skipped: int = 0
    lost: str | None = None


def draw(view: View, columns: int, rows: int | None) -> list[Text]:
    """Lines; with `rows` None all that there is to say, and no word of keys."""
    stats = view.sight.stats
    table = Table([*(model.name for model in view.sight.models), *Priority], columns)
    lines = [_title(stats), _requests(stats)]
    if stats.memory is not None:
        lines.append(_memory(stats))
    if rows is None or rows >= _TIERS_ROWS_MIN:
        tiers = [_overall_row(view), *(_tier_row(view, tier) for tier in Priority)]
        lines += [Text(), table.header("TIER", of_tiers=True), *map(table.row, tiers), Text()]
    lines.append(table.header("MODEL"))
    blocks = [[table.row(_model_row(view, model)), *details(stats, model)] for model in _in_order(view)]
    if rows is None:
        lines += [line for block in blocks for line in block]
    else:
        lines += _fit(blocks, view.skipped, rows - len(lines) - 1)
    if view.lost is not None:
        for line in lines:
            line.stylize("dim")
    if rows is not None:
        lines = [*lines[: max(0, rows - 1)], _footer(view)]
    for line in lines:
        line.truncate(max(1, columns), overflow="ellipsis")
    return lines[:rows]


def _fit(blocks: list[list[Text]], skipped: int, room: int) -> list[Text]:
    """As much as there is room for; the last line says how many models are not seen."""
    skipped = min(skipped, max(0, len(blocks) - 1))
    shown = blocks[skipped:]
    if not skipped and sum(map(len, shown)) <= room:
        return [line for block in shown for line in block]
    lines: list[Text] = []
    seen = 0
    for block in shown:
        if seen and len(lines) + len(block) > room - 1:
            break
        lines += block
        seen += 1
    before = f"{skipped} before, " if skipped else ""
    return [*lines[: max(0, room - 1)], Text(f"… {before}{len(shown) - seen} more", "dim")]


def _title(stats: Stats) -> Text:
    supervisor = stats.supervisor
    facts = [
        f"up {span(supervisor.uptime_s)}",
        size(supervisor.resident_bytes),
        counted(supervisor.connections, "connection"),
    ]
    objectives = [one for tiers in stats.slo.values() for listed in tiers.values() for one in listed]
    if objectives:
        kept = sum(one.state == SloState.OK for one in objectives)
        facts.append(f"{kept} of {counted(len(objectives), 'objective')} kept")
    return Text.assemble(("mlxsup", "bold"), f"  {', '.join(facts)}")


def _requests(stats: Stats) -> Text:
    overall = stats.overall
    again = sum(activity.queued_again for activity in stats.activity.values())
    facts = [
        f"{_now(stats, 'running')} running",
        f"{overall.requests_queued} waiting{f' ({again} again)' if again else ''}",
        f"{sum(overall.ended.values())} ended",
        f"{sum(overall.refused.values())} refused",
        f"{overall.requests_resumed} resumed",
    ]
    return Text(f"requests: {', '.join(facts)}")


def _memory(stats: Stats) -> Text:
    memory = stats.memory
    assert memory is not None
    share = memory.reserved_bytes / memory.capacity_bytes if memory.capacity_bytes else 1.0
    filled = min(_BAR_CELLS, round(share * _BAR_CELLS))
    free = size(memory.free_bytes) if memory.free_bytes >= 0 else f"-{size(-memory.free_bytes)}"
    return Text.assemble(
        f"memory: {size(memory.reserved_bytes)} of {size(memory.capacity_bytes)} kept for models, {free} free  ",
        ("━" * filled, "red" if memory.free_bytes < 0 else "green"),
        ("╌" * (_BAR_CELLS - filled), "dim"),
    )


def _now(stats: Stats, what: str, tier: Priority | None = None) -> int:
    """Of all models: `running` or `queued` requests, of one tier or of all."""
    by_tier = [getattr(activity, what) for activity in stats.activity.values()]
    return sum(sum(counts.values()) if tier is None else counts.get(tier.value, 0) for counts in by_tier)


def _overall_row(view: View) -> Row:
    stats = view.sight.stats
    return Row(
        name="all",
        of_tier=True,
        running=_now(stats, "running"),
        waiting=_now(stats, "queued"),
        rate=None if view.rates is None else view.rates.overall,
        recent=stats.overall.recent,
    )


def _tier_row(view: View, tier: Priority) -> Row:
    stats = view.sight.stats
    counters = stats.priorities.get(tier.value)
    return Row(
        name=tier.value,
        of_tier=True,
        running=_now(stats, "running", tier),
        waiting=_now(stats, "queued", tier),
        rate=None if view.rates is None else view.rates.priorities.get(tier.value, NO_RATE),
        recent=None if counters is None else counters.recent,
    )


def _model_row(view: View, model: ModelEntry) -> Row:
    stats = view.sight.stats
    counters = stats.models.get(model.name)
    activity = stats.activity.get(model.name)
    workers = stats.workers.get(model.name)
    return Row(
        name=model.name,
        state=state_word(model),
        style=_STYLES.get(WorkerState(model.state), "yellow"),
        running=None if activity is None else sum(activity.running.values()),
        waiting=None if activity is None else sum(activity.queued.values()),
        rate=_model_rate(view, model),
        recent=None if counters is None else counters.recent,
        memory_bytes=model.memory_bytes,
        deaths=None if workers is None else sum(workers.deaths.values()),
    )


def _model_rate(view: View, model: ModelEntry) -> Rate | None:
    return None if view.rates is None else view.rates.models.get(model.name, NO_RATE)


def _in_order(view: View) -> list[ModelEntry]:
    models, stats = view.sight.models, view.sight.stats
    if view.order is Order.LISTED:
        return models

    def weight(model: ModelEntry) -> float:
        activity = stats.activity.get(model.name)
        if view.order is Order.MEMORY:
            return model.memory_bytes or 0
        if view.order is Order.WAITING:
            return sum(activity.queued.values()) if activity else 0
        rate = _model_rate(view, model)
        return rate.completion_tokens if rate else 0.0

    return sorted(models, key=weight, reverse=True)


def _footer(view: View) -> Text:
    if view.lost is not None:
        # First what matters: the rest may be cut off.
        return Text(f"trying again: {view.lost}", "bold red")
    over = f"rates over {view.rates.over_s:.0f} s, " if view.rates else ""
    recent = view.sight.stats.overall.recent
    times = f"times over {recent.window_s:.0f} s; " if recent else ""
    return Text(f"{over}{times}q ends, s sorts ({view.order}), ↑↓ scroll", "dim")
