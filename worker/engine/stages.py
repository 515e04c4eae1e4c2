"""Computes a forward pass of the model in stages, so that something more urgent can go in between.

MLX evaluates what it is asked for and no more. A pass is built whole and then asked for a few layers at a time: between
two stages it costs nothing to leave the rest for later, and no number differs. Two stages are under way at a time, so
that the device never waits for the host.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from mlxsup.worker.engine.interface import IsWanted

# Short against what a person notices, and long against what asking for a stage costs.
STAGE_S = 0.02
_UNDER_WAY = 2


class Stages:
    """`marks` are arrays of a pass that MLX has not been asked for yet, those of earlier layers first."""

    def __init__(self, marks: Sequence[list[mx.array]] = ()) -> None:
        self._ahead = deque(marks)
        # Held no longer than needed: while somebody holds a cache's array, its next update is a copy.
        self._under_way: deque[list[mx.array]] = deque()

    def begin(self) -> None:
        """Ask for the first stages, without waiting for them."""
        while self._ahead and len(self._under_way) < _UNDER_WAY:
            self._under_way.append(self._ahead.popleft())
            mx.async_eval(self._under_way[-1])

    def run(self, is_wanted: IsWanted) -> bool:
        """Until all stages are asked for; False when it stopped before since it `is_wanted` elsewhere."""
        self.begin()
        while self._ahead:
            mx.eval(self._under_way.popleft())
            if is_wanted():
                return False
            self.begin()
        return True


def cache_marks(caches: Sequence[Any], pass_s: float) -> list[list[mx.array]]:
    """Marks that divide a pass over these layers, which takes so long, into stages of about `STAGE_S`."""
    stages = max(1, min(len(caches), round(pass_s / STAGE_S)))
    return [
        arrays
        for stage in range(1, stages)
        if (arrays := cache_arrays(caches[len(caches) * stage // stages : len(caches) * stage // stages + 1]))
    ]


def cache_arrays(caches: Sequence[Any]) -> list[mx.array]:
    """All arrays of these caches."""
    leaves: list[tuple[str, Any]] = tree_flatten([cache.state for cache in caches])  # type: ignore[assignment]
    return [leaf for _, leaf in leaves if isinstance(leaf, mx.array)]
