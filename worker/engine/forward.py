"""One pass of the model over rows of a batch."""

import mlx.core as mx
import mlx.nn as nn

from mlxsup.worker.engine.adapters.linear import Routes
from mlxsup.worker.engine.member import Caches, Member
from mlxsup.worker.engine.vision.sight import Seeing, SightedModel


class Forward:
    """Built, not computed."""

    def __init__(self, model: nn.Module, routes: Routes) -> None:
        self._model = model
        self._routes = routes

    def __call__(self, members: list[Member], inputs: mx.array, caches: Caches) -> mx.array:
        """Logits [members, tokens, vocabulary] of inputs [members, tokens]; their keys and values go into the caches."""
        self._routes.set([member.adapter for member in members])
        if isinstance(self._model, SightedModel):
            return self._model.see(
                [Seeing(member.cached, member.sight) for member in members], inputs, caches
            )
        logits: mx.array = self._model(inputs, cache=caches)
        return logits
