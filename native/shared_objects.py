"""Where the compiled parts are."""

from pathlib import Path

import mlxsup.native


def shared_object_path(name: str) -> Path | None:
    """Finds a compiled part. An editable install keeps them apart from the sources: the package then has two folders."""
    candidates = (Path(folder, "lib", f"{name}.so") for folder in mlxsup.native.__path__)
    return next((path.resolve() for path in candidates if path.is_file()), None)
