"""`mlxsup selftest`: whether a model's texts are the same with each feature of the engine as without any."""

import sys
import textwrap
from pathlib import Path

import click
import msgspec

from mlxsup.protocol.client.sync import Client
from mlxsup.protocol.self_test import Check, SelfTestResult
from mlxsup.supervisor.cli.loading import watch_load
from mlxsup.supervisor.cli.render import table
from mlxsup.supervisor.cli.setting import config_option, read_setting, socket_option

_COLUMNS = 80


@click.command("selftest")
@click.argument("model")
@config_option
@socket_option
@click.option("--json", "as_json", is_flag=True, help="One JSON text, for programs.")
def self_test(model: str, config_file: Path | None, socket_path: Path | None, as_json: bool) -> None:
    """Compare what MODEL says alone, in a batch, from kept beginnings and with guesses.

    What gives another text is switched off, and the exit status is 1. The model is loaded if need be; what runs goes on.
    """
    loaded = read_setting(config_file)
    with Client.connect(loaded.socket(socket_path)) as client:
        result: SelfTestResult = watch_load(
            client, loaded, "model/selftest", {"model": model}, "testing the model"
        )
    click.echo(msgspec.json.encode(result) if as_json else self_test_table(result))
    if not result.passed:
        sys.exit(1)


def self_test_table(result: SelfTestResult) -> str:
    """A line for each check, and below it why it is not ok."""
    rows = [_row(check) for check in result.checks]
    heading, *lines = table(("CHECK", "RESULT", "TOKENS", "SECONDS"), rows).splitlines()
    shown = [heading]
    for check, line in zip(result.checks, lines, strict=True):
        shown.append(line)
        if check.why:
            shown += textwrap.wrap(check.why, _COLUMNS, initial_indent="  ", subsequent_indent="  ")
    return "\n".join(shown)


def _row(check: Check) -> tuple[str, ...]:
    return (words(check.feature), words(check.outcome), str(check.tokens or "-"), f"{check.seconds:.1f}")


def words(name: str) -> str:
    """`prefix_cache` as `prefix cache`."""
    return name.replace("_", " ")
