"""Where mlxsup keeps things, by platform and environment. Pure: nothing is created here."""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from mlxsup.protocol.socket_path import default_socket


class Locations(msgspec.Struct, frozen=True, kw_only=True):
    """`config_file` and `socket` are what is used when no flag and no key names another.

    `cache` holds the models, `state` the death reports.
    """

    config_file: Path
    socket: Path
    cache: Path
    state: Path


def locate(platform: str, environment: Mapping[str, str], home: Path) -> Locations:
    """The user's folders: XDG's on Linux, the Library's on macOS.

    `MLXSUP_CONFIG`, `MLXSUP_SOCKET` and `MLXSUP_STATE` come first. `platform` is `sys.platform`.
    """
    if platform == "darwin":
        cache = home / "Library" / "Caches"
        config = state = home / "Library" / "Application Support"
    else:
        cache = _folder(environment, "XDG_CACHE_HOME", home / ".cache")
        config = _folder(environment, "XDG_CONFIG_HOME", home / ".config")
        state = _folder(environment, "XDG_STATE_HOME", home / ".local" / "state")
    return Locations(
        config_file=Path(environment.get("MLXSUP_CONFIG") or config / "mlxsup" / "config.toml"),
        socket=default_socket(platform, environment, home),
        cache=cache / "mlxsup",
        state=Path(environment.get("MLXSUP_STATE") or state / "mlxsup"),
    )


def _folder(environment: Mapping[str, str], variable: str, otherwise: Path) -> Path:
    value = environment.get(variable, "")
    # The XDG specification: a relative path is invalid and ignored.
    return Path(value) if value.startswith("/") else otherwise
