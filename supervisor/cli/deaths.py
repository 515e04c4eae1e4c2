"""`mlxsup deaths`: what died, of what, and what was done."""

import re
from datetime import datetime
from pathlib import Path

import click
import msgspec

from mlxsup.protocol.client.exchange import ConnectionLostError
from mlxsup.protocol.client.sync import Client
from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.service import ForgiveResult
from mlxsup.supervisor.cli.render import counted, size, table
from mlxsup.supervisor.cli.setting import Loaded, config_option, read_setting, socket_option
from mlxsup.supervisor.models.aliases import ALIASES
from mlxsup.supervisor.models.store import Store
from mlxsup.supervisor.recovery.death_report import DeathBook, DeathReport
from mlxsup.supervisor.recovery.poison import QuarantinedRequest

_SPARK = "▁▂▃▄▅▆▇█"
# The end of a line of which not all is kept.
_LEFT_OUT = re.compile(r"\(\d+ characters\)$")


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
    if model is not None:
        _require_known(loaded, book, model)
    if forget:
        forgiven = _forget(book, model, loaded.socket(socket_path))
        told = f"{counted(forgiven.requests, 'request')} may try again"
        click.echo(msgspec.json.encode(forgiven) if as_json else told)
        return
    reports, quarantined = book.read(model, limit), book.read_quarantined(model)
    if as_json:
        click.echo(msgspec.json.encode({"deaths": reports, "quarantined": quarantined}))
    else:
        _show(model, reports, quarantined, full=full)


def _require_known(loaded: Loaded, book: DeathBook, model: str) -> None:
    """Raises RpcError: it is a slip, and not a model that is well."""
    if book.read(model, 1) or book.read_quarantined(model):
        return
    pulled = (model.name for model in Store(loaded.locations.cache).pulled())
    if model not in {*loaded.config.models, *ALIASES, *pulled}:
        raise RpcError(
            ErrorKind.MODEL_NOT_FOUND,
            f"no model is called `{model}` here, and no death of one is known; `mlxsup deaths` lists those of all",
        )


def _show(
    model: str | None, reports: list[DeathReport], quarantined: list[QuarantinedRequest], *, full: bool
) -> None:
    if not reports:
        click.echo("no worker has died" if model is None else f"no worker of {model} has died")
    elif full:
        click.echo("\n\n".join(map(_whole, reports)))
    else:
        header = ("WHEN", "MODEL", "PID", "CLASS", "PHASE", "IN FLIGHT", "DONE")
        click.echo(table(header, [_row(report) for report in reports]))
        for name in dict.fromkeys(report.model for report in reports if report.given_up):
            click.echo(f"{name} was given up: {_way_out(name)}")
    for entry in quarantined:
        click.echo(
            f"quarantined: request {entry.digest[:16]} of {entry.model}, {entry.deaths} deaths ({entry.death_class})"
        )
    if quarantined:
        click.echo("`mlxsup deaths --forget` lets what is quarantined try again")


def _way_out(model: str) -> str:
    return f"`mlxsup load {model}` starts it again, once that is mended"


def _done(report: DeathReport) -> str:
    return f"{report.action}: model {report.given_up}" if report.given_up else report.action


def _forget(book: DeathBook, model: str | None, socket: Path) -> ForgiveResult:
    """Only the supervisor writes the book while there is one."""
    try:
        client = Client.connect(socket)
    except ConnectionLostError:
        return ForgiveResult(requests=book.forget_quarantined(model))
    with client:
        forgiven: ForgiveResult = client.call("model/forgive", {} if model is None else {"model": model})
    return forgiven


def _row(report: DeathReport) -> tuple[str, ...]:
    flight = str(len(report.in_flight))
    return (
        _when(report),
        report.model,
        str(report.pid),
        report.death_class,
        report.phase,
        flight,
        _done(report),
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
        f"  done      {_done(report)}",
    ]
    if report.given_up:
        lines.append(f"  way out   {_way_out(report.model)}")
    lines += [
        f"  in flight {shape.digest[:16]}: {shape.tokens_delivered} of at most {shape.max_tokens} tokens"
        for shape in report.in_flight
    ]
    if report.memory:
        resident = [sample.resident_bytes for sample in report.memory]
        free = size(report.memory[-1].available_bytes)
        lines.append(f"  memory    {_spark(resident)} {size(resident[-1])}, {free} free")
    lines += [f"  stderr    {line}" for line in report.stderr]
    if any(_LEFT_OUT.search(line) for line in report.stderr):
        lines.append(
            "            what may be of a prompt is left out; `mlxsup start --verbose` logs all of stderr"
        )
    return "\n".join(lines)


def _spark(values: list[int]) -> str:
    top = max(*values, 1)
    return "".join(_SPARK[min(len(_SPARK) - 1, value * len(_SPARK) // top)] for value in values)
