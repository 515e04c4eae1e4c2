"""`mlxsup config check`."""

from pathlib import Path

import click

from mlxsup.supervisor.cli.setting import read_setting


@click.group()
def config() -> None:
    """The configuration."""


@config.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def check(file: Path) -> None:
    """Say everything that is wrong with FILE, or that it is good."""
    loaded = read_setting(file)
    names = ", ".join(loaded.config.models)
    click.echo(f"{file} is good: models {names}")
