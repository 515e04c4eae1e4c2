"""Reads a GGUF with MLX. Edge."""

from pathlib import Path
from typing import cast

import mlx.core as mx

from mlxsup.worker.convert.metadata import Metadata, RefusedError, Value


def read_gguf(source: Path) -> tuple[dict[str, mx.array], Metadata]:
    """The tensors by their GGUF names, lazily read, and the metadata.

    Block-quantised tensors come as three arrays in MLX's own layout: `weight`, `scales`, `biases`.

    Raises:
        RefusedError: the file isn't a GGUF that MLX reads.
    """
    try:
        loaded = mx.load(str(source), format="gguf", return_metadata=True)
    except (RuntimeError, ValueError):
        # MLX's own text names the file by its path.
        raise RefusedError("cannot convert: MLX doesn't read this file as a GGUF") from None
    tensors, metadata = cast("tuple[dict[str, mx.array], dict[str, object]]", loaded)
    return tensors, Metadata({key: _plain(value) for key, value in metadata.items()})


def _plain(value: object) -> Value:
    if isinstance(value, mx.array):
        return cast("Value", value.tolist())
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return [str(item) for item in value]
    raise RefusedError("cannot convert: the metadata has a value of an unknown type")
