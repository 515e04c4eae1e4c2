"""From flags, environment and file to what a command works with: configuration, socket, folders. Edge."""

import os
import sys
from pathlib import Path

import click
import msgspec

from mlxsup.config.load import ConfigError, ConfigFault, load_config
from mlxsup.config.locations import Locations, locate
from mlxsup.config.schema import Config
from mlxsup.protocol.errors import RpcError
from mlxsup.supervisor.models.aliases import ALIASES
from mlxsup.supervisor.models.names import parse_source

NOT_CONFIGURED = 78
_CONFIG_BYTES_MAX = 4 * 1024 * 1024

config_option = click.option(
    "--config",
    "config_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Configuration file; else MLXSUP_CONFIG, else the user's own.",
)
socket_option = click.option(
    "--socket",
    "socket_path",
    type=click.Path(path_type=Path),
    help="Unix socket; else MLXSUP_SOCKET, else the configuration's.",
)


class SettingError(Exception):
    """The configuration can't be used; the text lists everything that is wrong."""


class Loaded(msgspec.Struct, frozen=True):
    """A configuration, the folder that its relative paths start from, and the places beside it."""

    config: Config
    config_folder: Path
    locations: Locations

    def socket(self, flag: Path | None) -> Path:
        if flag is not None:
            return flag.absolute()
        if not os.environ.get("MLXSUP_SOCKET") and self.config.server.socket is not None:
            return self.config_folder / Path(self.config.server.socket).expanduser()
        return self.locations.socket.absolute()


def _check_sources(config: Config) -> None:
    """Raises ConfigError: what a source may look like is the models' business, not the types'."""
    faults = []
    for name, model in config.models.items():
        try:
            parse_source(model.source or name, aliases=ALIASES)
        except RpcError as error:
            faults.append(ConfigFault(f"models.{name}.source", error.message))
    if faults:
        raise ConfigError(faults)


def _to_blame(file: Path, faults: list[ConfigFault]) -> str:
    if not any(fault.in_environment for fault in faults):
        return str(file)
    if not any(fault.in_file for fault in faults):
        return "what the environment sets"
    return f"{file} with what the environment sets"


def read_setting(config_file: Path | None) -> Loaded:
    """Raises SettingError. Only a file that somebody named has to be there."""
    locations = locate(sys.platform, os.environ, Path.home())
    file = config_file or locations.config_file
    by_variable = config_file is None and bool(os.environ.get("MLXSUP_CONFIG"))
    origin = ", which MLXSUP_CONFIG names" if by_variable else ""
    try:
        with file.open("rb") as opened:
            data = opened.read(_CONFIG_BYTES_MAX + 1)
    except FileNotFoundError:
        if config_file is not None or by_variable:
            raise SettingError(f"cannot read {file}{origin}: there is no such file") from None
        data = b""
    except OSError as error:
        raise SettingError(f"cannot read {file}{origin}: {error.strerror}") from None
    if len(data) > _CONFIG_BYTES_MAX:
        raise SettingError(f"cannot use {file}: a configuration is limited to {_CONFIG_BYTES_MAX} bytes")
    try:
        config = load_config(data.decode("utf-8"), os.environ)
        _check_sources(config)
    except UnicodeDecodeError as error:
        raise SettingError(f"cannot use {file}: byte {error.start} is not UTF-8") from None
    except ConfigError as error:
        faults = "\n".join(f"  {fault}" for fault in error.faults)
        raise SettingError(f"cannot use {_to_blame(file, error.faults)}:\n{faults}") from None
    return Loaded(config, file.absolute().parent, locations)
