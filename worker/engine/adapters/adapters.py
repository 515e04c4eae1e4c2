"""The adapters of one model: read when they are first asked for, dropped when others need the room.

Called by the MLX thread, but for `check`.
"""

from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.worker.engine.adapters.files import read_adapter, unfit
from mlxsup.worker.engine.adapters.linear import AdaptedLinear, Delta, Routes


class Adapters:
    """`folders` by name; of those that are read at most `bytes_max` stay, and those that are in use."""

    def __init__(self, model: nn.Module, folders: Mapping[str, str], bytes_max: int) -> None:
        self.routes = Routes()
        self._model = model
        self._folders = folders
        self._bytes_max = bytes_max
        # Oldest use first, with the bytes of each.
        self._read: OrderedDict[str, int] = OrderedDict()
        self._layers: dict[str, AdaptedLinear] = {}

    @property
    def resident(self) -> list[str]:
        """Those that are read, in the order of their last use."""
        return list(self._read)

    def check(self, name: str | None) -> None:
        """Any thread. Raises RpcError where there is none of that name."""
        if name is None or name in self._folders:
            return
        known = ", ".join(f"`{each}`" for each in sorted(self._folders))
        has = f"it has {known}" if known else "it has none: name some in the model's `adapters`"
        raise RpcError(
            ErrorKind.INVALID_PARAMS, f"this model has no adapter `{name}`; {has}", path="$.adapter"
        )

    def need(self, name: str | None, in_use: Collection[str | None]) -> None:
        """Have it ready, whatever else has to go; not those `in_use`. Raises RpcError where its files don't fit."""
        if name is None:
            return
        if name in self._read:
            self._read.move_to_end(name)
            return
        deltas = read_adapter(name, Path(self._folders[name]), self._dtype())
        modules = dict(self._model.named_modules())
        for path, delta in deltas.items():
            _check_fits(name, path, modules.get(path), delta)
        self._put_on(name, deltas, modules)
        self._read[name] = sum(delta.bytes for delta in deltas.values())
        for other in [each for each in self._read if each != name and each not in in_use]:
            if sum(self._read.values()) <= self._bytes_max:
                break
            self._drop(other)

    def _put_on(self, name: str, deltas: dict[str, Delta], modules: dict[str, nn.Module]) -> None:
        fresh = {}
        for path in deltas:
            if path not in self._layers:
                self._layers[path] = fresh[path] = AdaptedLinear(modules[path], self.routes)
        if fresh:
            self._model.update_modules(tree_unflatten(list(fresh.items())))
        for path, delta in deltas.items():
            mx.eval(delta.a, delta.b)
            self._layers[path].deltas[name] = delta

    def _drop(self, name: str) -> None:
        del self._read[name]
        for layer in self._layers.values():
            layer.deltas.pop(name, None)

    def _dtype(self) -> mx.Dtype:
        leaves: list[tuple[str, mx.array]] = tree_flatten(self._model.parameters())  # type: ignore[assignment]
        return next(leaf.dtype for _, leaf in leaves if mx.issubdtype(leaf.dtype, mx.floating))


def _check_fits(name: str, path: str, module: nn.Module | None, delta: Delta) -> None:
    base = module.base if isinstance(module, AdaptedLinear) else module
    if not isinstance(base, nn.Linear | nn.QuantizedLinear):
        kind = (
            "no layer of it"
            if base is None
            else f"a `{type(base).__name__}`, and only linear layers can be adapted"
        )
        raise unfit(name, f"`{path}` is {kind}")
    outputs, inputs = base.weight.shape
    if isinstance(base, nn.QuantizedLinear):
        inputs = inputs * 32 // base.bits
    if (delta.a.shape[0], delta.b.shape[1]) != (inputs, outputs):
        raise unfit(
            name,
            f"`{path}` takes {inputs} inputs to {outputs} outputs, and the adapter {delta.a.shape[0]} to {delta.b.shape[1]}",
        )
