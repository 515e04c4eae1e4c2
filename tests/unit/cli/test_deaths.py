"""`mlxsup deaths`, from a death book that nobody else writes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mlxsup.protocol.errors import RpcError
from mlxsup.supervisor.cli.deaths import deaths
from mlxsup.supervisor.recovery.death_report import DeathBook, DeathReport
from mlxsup.supervisor.recovery.poison import QuarantinedRequest

Run = Callable[..., Result]

REPORT: dict[str, Any] = {
    "at": "2026-01-02T03:04:05.000+00:00",
    "model": "m",
    "generation": 3,
    "pid": 4711,
    "death_class": "aborted",
    "phase": "ready",
    "exit_status": None,
    "signal": "SIGABRT",
    "reason": "aborted (signal SIGABRT) while ready",
    "lived_s": 1.5,
    "in_flight": [],
    "memory": [],
    "stderr": [],
    "advice": "",
    "action": "1 resumed, restart after 0.0 s",
}


@pytest.fixture
def book(tmp_path: Path) -> DeathBook:
    return DeathBook(tmp_path / "state" / "deaths.sqlite", 1000)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    config = tmp_path / "config.toml"
    config.write_text("[models.m]\n[models.quiet]\n")
    environment = {
        "HOME": str(tmp_path),
        "MLXSUP_CONFIG": str(config),
        "MLXSUP_STATE": str(tmp_path / "state"),
        "MLXSUP_SOCKET": str(tmp_path / "none.sock"),
    }

    def run_deaths(*arguments: str) -> Result:
        return CliRunner().invoke(deaths, arguments, env=environment)

    return run_deaths


def report(**changes: Any) -> DeathReport:
    return DeathReport(**REPORT | changes)


@pytest.mark.parametrize("flag", [(), ("--full",)])
def test_where_nothing_has_died_it_says_so(run: Run, flag: tuple[str, ...]) -> None:
    assert run(*flag).output == "no worker has died\n"
    assert run("quiet", *flag).output == "no worker of quiet has died\n"


@pytest.mark.parametrize("flag", [(), ("--full",), ("--json",), ("--forget",)])
def test_a_model_that_nobody_knows_is_an_error(run: Run, book: DeathBook, flag: tuple[str, ...]) -> None:
    book.write(report())
    asked = run("NOPE", *flag)
    assert isinstance(asked.exception, RpcError)
    assert "no model is called `NOPE`" in asked.exception.message


def test_a_model_that_is_configured_no_more_is_still_known_by_its_deaths(run: Run, book: DeathBook) -> None:
    book.write(report(model="gone"))
    assert "4711" in run("gone").output


@pytest.mark.parametrize("state", ["quarantined", "failed"])
@pytest.mark.parametrize("flag", [(), ("--full",)])
def test_the_death_after_which_a_model_was_given_up_says_so_and_how_it_is_had_again(
    run: Run, book: DeathBook, flag: tuple[str, ...], state: str
) -> None:
    book.write(report(given_up=state, action="2 failed, no restart"))
    shown = run(*flag).output
    assert f"2 failed, no restart: model {state}" in shown
    assert "`mlxsup load m` starts it again" in shown


@pytest.mark.parametrize("flag", [(), ("--full",)])
def test_a_death_with_another_worker_to_follow_tells_of_no_way_out(
    run: Run, book: DeathBook, flag: tuple[str, ...]
) -> None:
    book.write(report())
    shown = run(*flag).output
    assert REPORT["action"] in shown
    assert "mlxsup load" not in shown


def test_last_words_that_are_left_out_are_told_once_with_where_they_are(run: Run, book: DeathBook) -> None:
    book.write(report(stderr=["MemoryError … (80 characters)", "(7 characters)"]))
    assert run("--full").output.count("`mlxsup start --verbose` logs all of stderr") == 1


def test_last_words_that_are_whole_need_no_such_line(run: Run, book: DeathBook) -> None:
    book.write(report(stderr=['File "mlx/core.py", line 3']))
    shown = run("--full").output
    assert 'stderr    File "mlx/core.py", line 3' in shown
    assert "--verbose" not in shown


def test_quarantined_requests_are_listed_with_how_they_may_try_again(run: Run, book: DeathBook) -> None:
    entry = QuarantinedRequest(digest="ab" * 32, model="m", deaths=2, death_class="aborted")
    book.write_quarantined(entry, REPORT["at"])
    listed = run().output
    forgotten = run("--forget", "--json").output
    assert "request abababababababab of m" in listed
    assert "`mlxsup deaths --forget`" in listed
    assert json.loads(forgotten) == {"requests": 1}
    assert run("--forget").output == "0 requests may try again\n"
