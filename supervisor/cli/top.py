"""`mlxsup top`: what the running supervisor does, again and again."""

import shutil
import sys
from pathlib import Path

import click
import msgspec
import trio

from mlxsup.supervisor.cli.setting import config_option, read_setting, socket_option


@click.command()
@config_option
@socket_option
@click.option(
    "--interval-s", type=click.FloatRange(0.1, 60), default=1.0, show_default=True, help="Between two looks."
)
@click.option("--once", is_flag=True, help="One frame, of what was done within an interval.")
@click.option("--json", "as_json", is_flag=True, help="The same as one JSON text, for programs.")
def top(
    config_file: Path | None, socket_path: Path | None, interval_s: float, once: bool, as_json: bool
) -> None:
    """Watch the running supervisor: models, who waits, streams, rates, memory, deaths.

    \b
    q, Ctrl-C       end
    s               sort the models by another column
    ↑ ↓ PgUp PgDn   scroll
    """
    # What draws takes longer to import than most commands take.
    from rich.console import Console

    from mlxsup.supervisor.cli.top_live import watch
    from mlxsup.supervisor.cli.top_screen import View, draw
    from mlxsup.supervisor.cli.top_watch import measure

    socket = read_setting(config_file).socket(socket_path)
    console = Console(highlight=False)
    if as_json or once:
        sight, rates = trio.run(measure, socket, interval_s)
        if as_json:
            told = {"stats": sight.stats, "models": sight.models, "rates": rates}
            click.echo(msgspec.json.encode(told))
            return
        for line in draw(View(sight=sight, rates=rates), shutil.get_terminal_size().columns, None):
            console.print(line, soft_wrap=True)
        return
    if not sys.stdin.isatty() or not sys.stdout.isatty() or console.is_dumb_terminal:
        raise click.UsageError("there is no terminal to draw on: ask for one frame with --once or --json")
    sys.exit(trio.run(watch, socket, interval_s, console))
