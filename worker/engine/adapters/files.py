"""Reads an adapter that mlx-lm has trained: `adapter_config.json` and `adapters.safetensors`."""

from pathlib import Path

import mlx.core as mx
import msgspec

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.worker.engine.adapters.linear import Delta

CONFIG = "adapter_config.json"
WEIGHTS = "adapters.safetensors"


class _Parameters(msgspec.Struct, frozen=True):
    scale: float


class _Config(msgspec.Struct, frozen=True):
    lora_parameters: _Parameters
    fine_tune_type: str = "lora"


def read_adapter(name: str, folder: Path, dtype: mx.Dtype) -> dict[str, Delta]:
    """What it adds to which layer, by the layer's path in the model; computed in `dtype`.

    Raises:
        RpcError: UNSUPPORTED for another kind of adapter, MODEL_LOAD_FAILED for files that can't be read.
    """
    try:
        config = msgspec.json.decode((folder / CONFIG).read_bytes(), type=_Config)
        arrays: dict[str, mx.array] = mx.load(str(folder / WEIGHTS))  # type: ignore[assignment]
    except (OSError, ValueError, RuntimeError, msgspec.MsgspecError) as error:
        raise RpcError(
            ErrorKind.MODEL_LOAD_FAILED,
            f"cannot read the adapter `{name}`: {_plain(error, folder)}; it needs {CONFIG} and {WEIGHTS} as `mlx_lm.lora` writes them",
            path="$.adapter",
        ) from None
    if config.fine_tune_type != "lora":
        raise RpcError(
            ErrorKind.UNSUPPORTED,
            f"the adapter `{name}` is of the kind `{config.fine_tune_type}`; only `lora` can be put on a model that others use",
            path="$.adapter",
        )
    return _deltas(name, arrays, config.lora_parameters.scale, dtype)


def _deltas(name: str, arrays: dict[str, mx.array], scale: float, dtype: mx.Dtype) -> dict[str, Delta]:
    deltas = {}
    layers = {key.rpartition(".")[0] for key in arrays}
    for layer in sorted(layers):
        a, b = arrays.pop(f"{layer}.lora_a", None), arrays.pop(f"{layer}.lora_b", None)
        if a is None or b is None or a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
            raise unfit(
                name, f"`{layer}` has no pair of `lora_a` [inputs, rank] and `lora_b` [rank, outputs]"
            )
        deltas[layer] = Delta(a.astype(dtype), b.astype(dtype), scale)
    if arrays:
        raise unfit(name, f"`{min(arrays)}` is no part of one")
    return deltas


def unfit(name: str, why: str) -> RpcError:
    return RpcError(
        ErrorKind.MODEL_LOAD_FAILED, f"the adapter `{name}` does not fit this model: {why}", path="$.adapter"
    )


def _plain(error: Exception, folder: Path) -> str:
    if isinstance(error, FileNotFoundError):
        return "a file is missing"
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return first.replace(str(folder), "").strip()[:200]
