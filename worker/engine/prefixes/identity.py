"""Which model and engine computed a cache: anything else that computes others is another one. Edge."""

from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path

# Of each end of a file of weights.
_SAMPLE_BYTES = 64 * 1024


def folder_identity(folder: Path, *engine: str) -> str:
    """Of the configuration and weights in that folder, the versions of MLX and mlx-lm, and what else is said of the engine.

    Of the weights no more is read than tells one version from another: size, moment, header and both ends.
    """
    found = blake2b(digest_size=16)
    for name in ("mlx", "mlx-lm"):
        found.update(f"{name} {version(name)}\0".encode())
    for word in engine:
        found.update(f"{word}\0".encode())
    for path in sorted((*folder.glob("*.json"), *folder.glob("*.safetensors"))):
        state = path.stat()
        if path.suffix == ".json":
            found.update(f"{path.name} {state.st_size}\0".encode() + path.read_bytes())
            continue
        found.update(f"{path.name} {state.st_size} {state.st_mtime_ns}\0".encode())
        with path.open("rb") as file:
            found.update(file.read(_SAMPLE_BYTES))
            file.seek(max(0, state.st_size - _SAMPLE_BYTES))
            found.update(file.read(_SAMPLE_BYTES))
    return found.hexdigest()
