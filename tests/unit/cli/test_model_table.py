"""Models as `mlxsup list` shows them."""

from typing import Any

import click
import pytest

from mlxsup.protocol.service import ModelEntry
from mlxsup.supervisor.cli.model_table import model_table
from mlxsup.supervisor.pool.lifecycle import WorkerState
from mlxsup.supervisor.recovery.breaker import BreakerState

READY: dict[str, Any] = {
    "name": "smollm2-135m",
    "state": "ready",
    "reason": None,
    "pid": 4194304,
    "generation": 12,
    "memory_bytes": 693_000_000,
    "pinned": False,
    "pulled": True,
    "breaker": "closed",
}
REASON = (
    "this model is quarantined, its workers died too often; the last: killed (signal SIGKILL) while ready; somebody sent "
    "it SIGKILL; load it by hand with `mlxsup load` when that is mended"
)


def entry(**changes: Any) -> ModelEntry:
    return ModelEntry(**READY | changes)


def lines(*models: ModelEntry) -> list[str]:
    return click.unstyle(model_table(list(models))).splitlines()


def test_a_model_that_serves_has_one_line_as_the_readme_shows() -> None:
    assert lines(entry()) == [
        "MODEL         STATE  PID      MEMORY  STARTS",
        "smollm2-135m  ready  4194304  693 MB  12",
    ]


@pytest.mark.parametrize("state", WorkerState)
@pytest.mark.parametrize("breaker", BreakerState)
def test_an_ordinary_model_fits_a_terminal_of_80_columns(state: WorkerState, breaker: BreakerState) -> None:
    shown = lines(entry(state=state.value, breaker=breaker.value, pinned=True, reason=REASON))
    assert max(map(len, shown)) <= 80
    assert "_" not in "".join(shown)


def test_the_reason_stands_below_its_model_whole() -> None:
    shown = lines(entry(state="quarantined", reason=REASON), entry(name="other"))
    assert shown[1].startswith("smollm2-135m  quarantined")
    assert shown[-1].startswith("other ")
    assert " ".join(line.strip() for line in shown[2:-1]) == REASON


def test_what_a_self_test_has_switched_off_stands_below_its_model() -> None:
    shown = lines(entry(reason="no", switched_off=["batch", "prefix_cache"]), entry(name="other"))
    assert shown[2] == "  no"
    below = " ".join(line.strip() for line in shown[3:-1])
    assert below.startswith("switched off by its self-test: batch, prefix cache;")
    assert "`mlxsup selftest smollm2-135m`" in below
    assert max(map(len, shown)) <= 80


def test_the_breakers_are_shown_when_one_is_not_closed_by_the_words_of_the_command() -> None:
    shown = lines(entry(breaker="forced_open"), entry())
    assert [line.split()[-1] for line in shown] == ["BREAKER", "force-open", "closed"]


def test_what_is_not_pulled_or_is_pinned_is_its_state() -> None:
    _, stopped, pinned = lines(entry(state="stopped", pulled=False), entry(pinned=True))
    assert "  not pulled  " in stopped
    assert "  ready, pinned  " in pinned
