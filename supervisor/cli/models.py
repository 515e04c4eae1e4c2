"""`mlxsup list`, `pull`, `load`, `unload`, `recycle` and `breaker`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec
import trio

from mlxsup.protocol.client.exchange import Notification
from mlxsup.protocol.client.sync import Client
from mlxsup.protocol.service import ModelEntry, Progress
from mlxsup.supervisor.cli.render import ProgressLine, size, table
from mlxsup.supervisor.cli.setting import config_option, read_setting, socket_option
from mlxsup.supervisor.models.fetcher.messages import Progress as PullProgress
from mlxsup.supervisor.models.pull import pull


@click.command("list")
@config_option
@socket_option
@click.option("--json", "as_json", is_flag=True, help="One JSON text, for programs.")
def list_models(config_file: Path | None, socket_path: Path | None, as_json: bool) -> None:
    """The models that the running supervisor knows."""
    with Client.connect(read_setting(config_file).socket(socket_path)) as client:
        listed = client.call("model/list")
    if as_json:
        click.echo(msgspec.json.encode(listed))
        return
    click.echo(model_table(listed.models))


def model_table(models: list[ModelEntry]) -> str:
    header = ("MODEL", "STATE", "PID", "MEMORY", "STARTS", "")
    return table(header, [_row(model) for model in models])


def _row(model: ModelEntry) -> tuple[str, ...]:
    notes = [] if model.pulled else ["not pulled"]
    notes += ["pinned"] if model.pinned else []
    notes += [f"breaker {model.breaker}"] if model.breaker != "closed" else []
    notes += [model.reason] if model.reason else []
    pid = str(model.pid or "-")
    return (model.name, model.state, pid, size(model.memory_bytes), str(model.generation), "; ".join(notes))


@click.command("pull")
@click.argument("model")
@config_option
def pull_model(model: str, config_file: Path | None) -> None:
    """Fetch and store MODEL, an alias or a Hugging Face id.

    A pull that was interrupted goes on where it was.
    """
    loaded = read_setting(config_file)
    configured = loaded.config.models.get(model)
    name = configured.source if configured is not None and configured.source else model
    line = ProgressLine(model)

    def show(progress: PullProgress) -> None:
        line.show(progress.phase.value, progress.bytes_done, progress.bytes_total)

    async def run() -> str:
        return str((await pull(name, store_root=loaded.locations.cache, on_progress=show)).path)

    try:
        path = trio.run(run)
    finally:
        line.end()
    click.echo(f"{model} is in {path}")


@click.command()
@click.argument("model")
@config_option
@socket_option
@click.option("--pin/--no-pin", default=None, help="Unload it only with --force.")
def load(model: str, config_file: Path | None, socket_path: Path | None, pin: bool | None) -> None:
    """Have the running supervisor load MODEL now."""
    _watch_load("model/load", {"model": model, "pin": pin}, "starting a worker", config_file, socket_path)


def show_load(line: ProgressLine) -> Callable[[Notification], None]:
    """Draws the progress notifications of a load."""

    def show(notification: Notification) -> None:
        if isinstance(notification, Progress):
            value = notification.value
            line.show(value["phase"], value["bytes_done"], value["bytes_total"])

    return show


@click.command()
@click.argument("model")
@config_option
@socket_option
@click.option("--force", is_flag=True, help="At once, and also if it is pinned.")
def unload(model: str, config_file: Path | None, socket_path: Path | None, force: bool) -> None:
    """End MODEL's worker, after its requests."""
    with Client.connect(read_setting(config_file).socket(socket_path)) as client:
        client.call("model/unload", {"model": model, "force": force})


@click.command()
@click.argument("model")
@config_option
@socket_option
def recycle(model: str, config_file: Path | None, socket_path: Path | None) -> None:
    """Replace MODEL's worker by a new one; running answers lose nothing."""
    _watch_load("model/recycle", {"model": model}, "starting another worker", config_file, socket_path)


def _watch_load(
    method: str, params: dict[str, Any], first: str, config_file: Path | None, socket_path: Path | None
) -> None:
    """Ask for a worker, draw its load, and show what is there then."""
    line = ProgressLine(params["model"])
    with Client.connect(read_setting(config_file).socket(socket_path)) as client:
        line.show(first, 0, None)
        try:
            entry = client.call(method, params, show_load(line))
        finally:
            line.end()
    click.echo(model_table([entry]))


@click.command()
@click.argument("model")
@click.argument("action", type=click.Choice(["reset", "force-open", "disable"]))
@config_option
@socket_option
def breaker(model: str, action: str, config_file: Path | None, socket_path: Path | None) -> None:
    """Set MODEL's circuit breaker by hand."""
    with Client.connect(read_setting(config_file).socket(socket_path)) as client:
        entry = client.call("model/breaker", {"model": model, "action": action.replace("-", "_")})
    click.echo(model_table([entry]))
