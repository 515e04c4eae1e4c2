"""Where the supervisor listens when nobody says otherwise. Pure."""

from collections.abc import Mapping
from pathlib import Path


def default_socket(platform: str, environment: Mapping[str, str], home: Path) -> Path:
    """`MLXSUP_SOCKET`, else a path in a folder that only this user can enter. `platform` is `sys.platform`."""
    if named := environment.get("MLXSUP_SOCKET"):
        return Path(named)
    if platform == "darwin":
        return home / "Library" / "Caches" / "mlxsup" / "mlxsup.sock"
    runtime = environment.get("XDG_RUNTIME_DIR", "")
    # Not in /tmp otherwise, where anybody could have made the folder before.
    folder = Path(runtime) if runtime.startswith("/") else home / ".local" / "state"
    return folder / "mlxsup" / "mlxsup.sock"
