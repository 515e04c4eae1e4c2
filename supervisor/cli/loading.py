"""`mlxsup load` and `recycle`: a worker is asked for, and what happens meanwhile is shown."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from mlxsup.protocol.client.exchange import Notification
from mlxsup.protocol.client.sync import Client
from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.service import Event, Progress
from mlxsup.supervisor.cli.model_table import model_table
from mlxsup.supervisor.cli.render import ProgressLine
from mlxsup.supervisor.cli.setting import Loaded, config_option, read_setting, socket_option
from mlxsup.supervisor.models.aliases import ALIASES
from mlxsup.supervisor.models.names import Folder, parse_source
from mlxsup.supervisor.pool.lifecycle import WorkerState

_ABOUT_THE_FOLDER = frozenset({ErrorKind.MODEL_NOT_FOUND, ErrorKind.MODEL_LOAD_FAILED})


@click.command()
@click.argument("model")
@config_option
@socket_option
@click.option("--pin/--no-pin", default=None, help="Unload it only with --force.")
def load(model: str, config_file: Path | None, socket_path: Path | None, pin: bool | None) -> None:
    """Have the running supervisor load MODEL now.

    What was held against it, such as its quarantine, is forgotten.
    """
    _ask("model/load", {"model": model, "pin": pin}, "starting a worker", config_file, socket_path)


@click.command()
@click.argument("model")
@config_option
@socket_option
def recycle(model: str, config_file: Path | None, socket_path: Path | None) -> None:
    """Replace MODEL's worker by a new one; running answers lose nothing."""
    _ask("model/recycle", {"model": model}, "starting another worker", config_file, socket_path)


def _ask(
    method: str, params: dict[str, Any], first: str, config_file: Path | None, socket_path: Path | None
) -> None:
    """Ask for a worker, draw its load, and show what is there then."""
    loaded = read_setting(config_file)
    with Client.connect(loaded.socket(socket_path)) as client:
        entry = watch_load(client, loaded, method, params, first)
    click.echo(model_table([entry]))


def watch_load(client: Client, loaded: Loaded, method: str, params: dict[str, Any], first: str) -> Any:
    """The result of `method`, which starts a worker; `first` is shown until its load tells something."""
    model = params["model"]
    line = ProgressLine(model)
    client.call("server/subscribe", {"topics": ["death"]})
    before = client.call("server/health").models.get(model)
    if before is not None and before.state == WorkerState.BACKOFF:
        line.tell(f"backing off: {before.reason}", first)
    with folder_named(loaded, model):
        line.show(first, 0, None)
        try:
            return client.call(method, params, show_load(line, model))
        finally:
            line.end()


def show_load(line: ProgressLine, model: str) -> Callable[[Notification], None]:
    """Draws the progress notifications of a load, and tells of the deaths that a client has subscribed to."""

    def show(notification: Notification) -> None:
        if isinstance(notification, Progress):
            value = notification.value
            line.show(value["phase"], value["bytes_done"], value["bytes_total"])
        elif isinstance(notification, Event) and notification.model == model and "pid" in notification.detail:
            line.tell(describe_death(notification), "waiting for another worker")

    return show


def describe_death(event: Event) -> str:
    """Of the topic `death`: what died, of what, and what follows."""
    detail = event.detail
    how = f"signal {detail['signal']}" if detail["signal"] else f"exit status {detail['exit_status']}"
    return f"the worker died: {event.what} ({how}) while {detail['phase']}; {detail['action']}"


@contextmanager
def folder_named(loaded: Loaded, model: str) -> Iterator[None]:
    """Adds to an error about a model's folder where it is, by the configuration here: no client is told that."""
    try:
        yield
    except RpcError as error:
        where = _folder(loaded, model) if error.kind in _ABOUT_THE_FOLDER else None
        if where is None:
            raise
        raise RpcError(error.kind, f"{error.message} (`{model}` is {where})") from None


def _folder(loaded: Loaded, model: str) -> str | None:
    configured = loaded.config.models.get(model)
    if configured is None:
        return None
    source = parse_source(configured.source or model, aliases=ALIASES)
    if not isinstance(source, Folder):
        return None
    found = str(source.locate(base=loaded.config_folder, home=Path.home()))
    return f"`{source.path}`" if found == source.path else f"`{source.path}`, that is {found}"
