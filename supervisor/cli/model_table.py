"""How models look in a terminal: one line each, and below it why one does not serve, or not with all it could."""

import textwrap

from mlxsup.protocol.service import ModelEntry
from mlxsup.supervisor.cli.render import size, table
from mlxsup.supervisor.pool.lifecycle import WorkerState
from mlxsup.supervisor.recovery.breaker import BreakerState

_COLUMNS = 80
_STATES = {WorkerState.SPAWNING: "starting", WorkerState.BACKOFF: "backing off"}
_BREAKERS = {BreakerState.HALF_OPEN: "half-open", BreakerState.FORCED_OPEN: "force-open"}


def model_table(models: list[ModelEntry]) -> str:
    """The breakers have a column when one of them is not closed."""
    with_breaker = any(model.breaker != BreakerState.CLOSED for model in models)
    header = ("MODEL", "STATE", "PID", "MEMORY", "STARTS", *(["BREAKER"] if with_breaker else []))
    heading, *lines = table(header, [_row(model)[: len(header)] for model in models]).splitlines()
    shown = [heading]
    for model, line in zip(models, lines, strict=True):
        shown.append(line)
        for remark in filter(None, (model.reason, switched_off_words(model))):
            shown += textwrap.wrap(
                remark,
                _COLUMNS,
                initial_indent="  ",
                subsequent_indent="  ",
                break_on_hyphens=False,
            )
    return "\n".join(shown)


def _row(model: ModelEntry) -> tuple[str, ...]:
    return (
        model.name,
        f"{state_word(model)}, pinned" if model.pinned else state_word(model),
        str(model.pid or "-"),
        size(model.memory_bytes),
        str(model.generation),
        breaker_word(model),
    )


def switched_off_words(model: ModelEntry) -> str:
    """What its self-test has switched off, empty: nothing."""
    names = ", ".join(name.replace("_", " ") for name in model.switched_off)
    return f"switched off by its self-test: {names}; `mlxsup selftest {model.name}` says why" if names else ""


def state_word(model: ModelEntry) -> str:
    if model.state == WorkerState.STOPPED and not model.pulled:
        return "not pulled"
    return _STATES.get(WorkerState(model.state), model.state)


def breaker_word(model: ModelEntry) -> str:
    """As the command that sets it has it."""
    return _BREAKERS.get(BreakerState(model.breaker), model.breaker)
