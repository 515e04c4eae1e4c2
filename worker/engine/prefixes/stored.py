"""Caches as the bytes of a file, and back. For the MLX thread."""

from typing import Any

import mlx.core as mx
import numpy as np

from mlxsup.worker.engine.prefixes.caches import Kept, Piece, Whole, cache_class
from mlxsup.worker.engine.prefixes.file import Label, Tensor
from mlxsup.worker.engine.prefixes.stretches import Stretch

_TYPES = {
    "BOOL": mx.bool_,
    "U8": mx.uint8,
    "I8": mx.int8,
    "U16": mx.uint16,
    "I16": mx.int16,
    "U32": mx.uint32,
    "I32": mx.int32,
    "U64": mx.uint64,
    "I64": mx.int64,
    "F16": mx.float16,
    "BF16": mx.bfloat16,
    "F32": mx.float32,
    "C64": mx.complex64,
}
_NAMES = {kind: name for name, kind in _TYPES.items()}
_ARRAY = "array"


def label_of(stretch: Stretch[Kept], identity: str) -> Label:
    kept = stretch.payload
    if isinstance(kept, Piece):
        state: Any = None
    else:
        state = [[type(cache).__name__, _without_arrays(cache.state)] for cache in kept.caches]
    return Label(identity, stretch.before, stretch.start, stretch.tokens, stretch.is_whole, state)


def tensors_of(kept: Kept) -> list[Tensor]:
    """Views of arrays that are computed."""
    arrays = kept.arrays()
    runs = [mx.contiguous(array).reshape(-1).view(mx.uint8) for array in arrays]
    mx.eval(runs)
    return [
        Tensor(_NAMES[array.dtype], tuple(array.shape), _view(run))
        for array, run in zip(arrays, runs, strict=True)
    ]


def kept_of(label: Label, tensors: list[Tensor]) -> Kept:
    """Raises ValueError: they do not make any."""
    arrays = iter([_array(tensor) for tensor in tensors])
    if label.state is None:
        layers = list(zip(arrays, arrays, strict=True))
        if any(array.ndim != 4 or array.shape[2] != len(label.tokens) for layer in layers for array in layer):
            raise ValueError("its tensors are no keys and values of these tokens")
        return Piece(layers)
    return Whole([cache_class(name).from_state(_with_arrays(state, arrays)) for name, state in label.state])


def _view(run: mx.array) -> memoryview:
    exporter: Any = run
    return memoryview(exporter)


def _array(tensor: Tensor) -> mx.array:
    return (
        mx.array(np.frombuffer(tensor.data, dtype=np.uint8)).view(_TYPES[tensor.dtype]).reshape(tensor.shape)
    )


def _without_arrays(state: Any) -> Any:
    """In JSON; where an array was, only its place is left."""
    if isinstance(state, mx.array):
        return {_ARRAY: True}
    if isinstance(state, list | tuple):
        return [_without_arrays(item) for item in state]
    return state


def _with_arrays(state: Any, arrays: Any) -> Any:
    if isinstance(state, dict):
        return next(arrays)
    if isinstance(state, list):
        return [_with_arrays(item, arrays) for item in state]
    return state
