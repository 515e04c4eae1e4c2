"""`mlxsup list`, `pull`, `unload` and `breaker`."""

from pathlib import Path

import click
import msgspec
import trio

from mlxsup.protocol.client.sync import Client
from mlxsup.supervisor.cli.model_table import model_table
from mlxsup.supervisor.cli.render import ProgressLine
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
@click.option("--force", is_flag=True, help="At once, and also if it is pinned.")
def unload(model: str, config_file: Path | None, socket_path: Path | None, force: bool) -> None:
    """End MODEL's worker, after its requests."""
    with Client.connect(read_setting(config_file).socket(socket_path)) as client:
        client.call("model/unload", {"model": model, "force": force})


# The words of `mlxsup list` are those of the actions that lead there.
_ACTIONS = {"reset": "reset", "force-open": "force_open", "disable": "disable"}


@click.command()
@click.argument("model")
@click.argument("action", type=click.Choice(list(_ACTIONS)))
@config_option
@socket_option
def breaker(model: str, action: str, config_file: Path | None, socket_path: Path | None) -> None:
    """Set the circuit breaker of MODEL by hand.

    \b
    reset       Close it: requests are let in, and deaths are counted from zero.
    force-open  Refuse new requests until somebody sets it otherwise.
    disable     Let every request in, whatever dies, until it is set otherwise.
    """
    with Client.connect(read_setting(config_file).socket(socket_path)) as client:
        entry = client.call("model/breaker", {"model": model, "action": _ACTIONS[action]})
    click.echo(model_table([entry]))
