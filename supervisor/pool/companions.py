"""What a model is loaded with besides its own folder."""

from pathlib import Path

import msgspec

from mlxsup.supervisor.models.names import Folder


class Companions(msgspec.Struct, frozen=True):
    """The folder of its draft model, if it has one, and those of its adapters by name."""

    draft: Path | None = None
    adapters: dict[str, Path] = {}


def adapter_folders(adapters: dict[str, str], config_folder: Path, home: Path) -> dict[str, Path]:
    """As written in the configuration: from the root, from `~`, or from the configuration's own folder."""
    return {name: Folder(path).locate(base=config_folder, home=home) for name, path in adapters.items()}
