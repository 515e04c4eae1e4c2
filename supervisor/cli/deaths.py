"""`mlxsup deaths`: what died, of what, and what was done."""

from datetime import datetime
from pathlib import Path

import click
import msgspec

from mlxsup.protocol.client.exchange import ConnectionLostError
from mlxsup.protocol.client.sync import Client
from mlxsup.supervisor.cli.render import size, table
from mlxsup.supervisor.cli.setting import config_option, read_setting, socket_option
from mlxsup.supervisor.recovery.death_report import DeathBook, DeathReport

_SPARK = "▁▂▃▄▅▆▇█"


@click.command()
@click.argument("model", required=False)
@click.option("-n", "--limit", type=click.IntRange(1, 1000), default=20, help="How many of the newest.")
@click.option("--full", is_flag=True, help="Every report whole: requests in flight, memory, last words.")
@click.option("--json", "as_json", is_flag=True, help="One JSON text, for programs.")
@click.option("--forget", is_flag=True, help="Let quarantined requests try again, from now on.")
@config_option
@socket_option
def deaths(
    model: str | None,
    limit: int,
    full: bool,
    as_json: bool,
    forget: bool,
    config_file: Path | None,
    socket_path: Path | None,
) -> None:
    """The deaths of workers, newest first, and the requests that were quarantined; of MODEL, or of all.

    Needs no running supervisor.
    """
    loaded = read_setting(config_file)
    book = DeathBook(loaded.locations.state / "deaths.sqlite", loaded.config.recovery.reports_max)
    if forget:
        click.echo(f"{_forget(book, model, loaded.socket(socket_path))} requests may try again")
        return
    reports, quarantined = book.read(model, limit), book.read_quarantined(model)
    if as_json:
        click.echo(msgspec.json.encode({"deaths": reports, "quarantined": quarantined}))
        return
    if full:
        click.echo("\n\n".join(map(_whole, reports)))
    elif reports:
        header = ("WHEN", "MODEL", "PID", "CLASS", "PHASE", "IN FLIGHT", "DONE")
        click.echo(table(header, [_row(report) for report in reports]))
    else:
        click.echo("no worker has died")
    for entry in quarantined:
        click.echo(
            f"quarantined: request {entry.digest[:16]} of {entry.model}, {entry.deaths} deaths ({entry.death_class})"
        )


def _forget(book: DeathBook, model: str | None, socket: Path) -> int:
    """Only the supervisor writes the book while there is one."""
    try:
        client = Client.connect(socket)
    except ConnectionLostError:
        return book.forget_quarantined(model)
    with client:
        forgiven = client.call("model/forgive", {} if model is None else {"model": model})
    return int(forgiven.requests)


def _row(report: DeathReport) -> tuple[str, ...]:
    flight = str(len(report.in_flight))
    return (
        _when(report),
        report.model,
        str(report.pid),
        report.death_class,
        report.phase,
        flight,
        report.action,
    )


def _when(report: DeathReport) -> str:
    return datetime.fromisoformat(report.at).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _whole(report: DeathReport) -> str:
    lines = [
        click.style(
            f"{_when(report)}  {report.model}  worker {report.pid}, start {report.generation}", bold=True
        ),
        f"  died      {report.reason}",
        f"  lived     {report.lived_s:.1f} s",
        f"  done      {report.action}",
    ]
    lines += [
        f"  in flight {shape.digest[:16]}: {shape.tokens_delivered} of at most {shape.max_tokens} tokens"
        for shape in report.in_flight
    ]
    if report.memory:
        resident = [sample.resident_bytes for sample in report.memory]
        free = size(report.memory[-1].available_bytes)
        lines.append(f"  memory    {_spark(resident)} {size(resident[-1])}, {free} free")
    return "\n".join(lines + [f"  stderr    {line}" for line in report.stderr])


def _spark(values: list[int]) -> str:
    top = max(*values, 1)
    return "".join(_SPARK[min(len(_SPARK) - 1, value * len(_SPARK) // top)] for value in values)
