"""A model without its head: what gives the last hidden states of tokens."""

from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache

from mlxsup.worker.engine.adapters.linear import Routes
from mlxsup.worker.engine.member import Caches

# As mlx-lm's models call it, of the whole or of its part for text.
_NAMES = ("model", "transformer", "backbone")


class Trunk(Protocol):
    """`reads_whole`: a text can't be read in parts. The shorter ones of a pass end in `pad_token`s."""

    dimensions: int
    reads_whole: bool
    pad_token: int

    def caches(self) -> Caches:
        """For a pass and those that go on behind it."""
        ...

    def __call__(self, inputs: mx.array, caches: Caches, lengths: list[int]) -> mx.array:
        """Hidden states [rows, tokens, dimensions] of inputs [rows, tokens], built and not computed. Of each row so many tokens
        count, from its beginning on.
        """
        ...


class CausalTrunk:
    """Of a model that looks back only: what stands behind a token changes nothing of it."""

    reads_whole = False
    pad_token = 0

    def __init__(self, model: nn.Module, part: nn.Module, routes: Routes) -> None:
        self._model = model
        self._part = part
        self._routes = routes
        self.dimensions = int(self(mx.zeros((1, 2), dtype=mx.int32), self.caches(), [2]).shape[-1])

    def caches(self) -> Caches:
        caches: Caches = make_prompt_cache(self._model)
        return caches

    def __call__(self, inputs: mx.array, caches: Caches, lengths: list[int]) -> mx.array:  # noqa: ARG002
        """As `Trunk.__call__`."""
        self._routes.set([None] * inputs.shape[0])
        hidden = self._part(inputs, cache=caches)
        if not isinstance(hidden, mx.array) or hidden.shape[:2] != inputs.shape or hidden.ndim != 3:
            raise TypeError("no hidden states")
        return hidden


def find_trunk(model: nn.Module, routes: Routes) -> CausalTrunk | None:
    """None where this model has none that could be told."""
    for holder in (model, getattr(model, "language_model", None)):
        for name in _NAMES:
            part: Any = getattr(holder, name, None)
            if isinstance(part, nn.Module):
                try:
                    return CausalTrunk(model, part, routes)
                except (TypeError, ValueError, AttributeError):
                    continue
    return None
