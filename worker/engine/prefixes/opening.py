"""What a worker keeps of the beginnings of texts, as it is ordered to."""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from mlxsup.protocol.worker_link import Load
from mlxsup.worker.engine.prefixes.caches import is_cuttable
from mlxsup.worker.engine.prefixes.disk import Disk
from mlxsup.worker.engine.prefixes.identity import folder_identity
from mlxsup.worker.engine.prefixes.prefixes import Prefixes


def open_prefixes(order: Load, model: nn.Module, bytes_per_token: int) -> Prefixes:
    disk = None
    if order.prefix_folder is not None and order.prefix_disk_bytes_max and order.prefix_bytes_max:
        # Rounding differs between devices and types: a text would not be the same.
        engine = (str(mx.default_device()), str(order.float32))
        identity = folder_identity(Path(order.model_path), *engine)
        disk = Disk(Path(order.prefix_folder), identity, order.prefix_disk_bytes_max)
    return Prefixes(
        is_cuttable=is_cuttable(model),
        bytes_max=order.prefix_bytes_max,
        bytes_per_token=bytes_per_token,
        disk=disk,
        disk_tokens_min=order.prefix_disk_tokens_min,
    )


def cache_keys(order: Load) -> dict[str | None, str | None]:
    """By adapter: what is computed with one is of use with that one only, None: with none."""
    keys: dict[str | None, str | None] = {None: ""}
    for name, folder in order.adapters.items():
        try:
            keys[name] = f"{name} {folder_identity(Path(folder))}"
        except OSError:
            keys[name] = None
    return keys
