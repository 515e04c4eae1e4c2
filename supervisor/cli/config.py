"""`mlxsup config check`."""

from pathlib import Path

import click

from mlxsup.supervisor.cli.setting import SettingError, read_setting
from mlxsup.supervisor.models.aliases import ALIASES
from mlxsup.supervisor.models.names import Folder, parse_source


@click.group()
def config() -> None:
    """The configuration."""


@config.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def check(file: Path) -> None:
    """Say everything that is wrong with FILE, or that it is good."""
    loaded = read_setting(file)
    for name, model in loaded.config.models.items():
        source = parse_source(model.source or name, aliases=ALIASES)
        if isinstance(source, Folder):
            folder = source.locate(base=loaded.config_folder, home=Path.home())
            if not folder.is_dir():
                raise SettingError(f"cannot use {file}:\n  models.{name}.source: there is no folder {folder}")
    names = ", ".join(loaded.config.models)
    click.echo(f"{file} is good: models {names}")
