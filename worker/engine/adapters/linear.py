"""A linear layer whose rows may each have an adapter of their own (LoRA: Hu et al. 2021; in one batch: S-LoRA, Sheng et al. 2023)."""

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import msgspec


class Delta(msgspec.Struct, frozen=True, eq=False):
    """What one adapter adds to one layer: `scale * x @ a @ b`, with a [inputs, rank] and b [rank, outputs]."""

    a: mx.array
    b: mx.array
    scale: float

    @property
    def bytes(self) -> int:
        return self.a.nbytes + self.b.nbytes

    def of(self, x: mx.array) -> mx.array:
        return ((x @ self.a) @ self.b) * self.scale


class Routes:
    """Which rows of the pass that is built now have which adapter. All adapted layers of a model share it."""

    def __init__(self) -> None:
        # None: all rows.
        self.rows: dict[str, mx.array | None] = {}

    def set(self, adapters: Sequence[str | None]) -> None:
        """An entry for each row."""
        names = {name for name in adapters if name is not None}
        self.rows = {
            name: None
            if all(each == name for each in adapters)
            else mx.array([at for at, each in enumerate(adapters) if each == name])
            for name in sorted(names)
        }


class AdaptedLinear(nn.Module):
    def __init__(self, base: nn.Module, routes: Routes) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.base = base
        # Beside the module's own tree: they are no parameters of the model.
        object.__setattr__(self, "routes", routes)
        object.__setattr__(self, "deltas", {})

    routes: Routes
    deltas: dict[str, Delta]

    def __call__(self, x: mx.array) -> mx.array:
        y: mx.array = self.base(x)
        for name, rows in self.routes.rows.items():
            delta = self.deltas.get(name)
            if delta is None:
                continue
            if rows is None:
                y = y + delta.of(x).astype(y.dtype)
            else:
                y = y.at[rows].add(delta.of(x[rows]).astype(y.dtype))
        return y
