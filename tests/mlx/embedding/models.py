"""A model of random weights, small enough to be computed in a moment."""

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map
from mlx_lm.models.llama import Model, ModelArgs

from mlxsup.worker.engine.adapters.linear import Routes
from mlxsup.worker.engine.embedding.trunk import CausalTrunk, find_trunk

VOCABULARY = 97
DIMENSIONS = 32
WINDOW = 12


def make_model(*, sliding: bool = False) -> nn.Module:
    """With `sliding` every other layer looks back so far only."""
    mx.random.seed(7)
    other = "sliding_attention" if sliding else "full_attention"
    model: nn.Module = Model(
        ModelArgs(
            model_type="llama",
            hidden_size=DIMENSIONS,
            num_hidden_layers=4,
            intermediate_size=64,
            num_attention_heads=4,
            num_key_value_heads=2,
            rms_norm_eps=1e-5,
            vocab_size=VOCABULARY,
            layer_types=["full_attention", other] * 2,
            sliding_window=WINDOW,
            tie_word_embeddings=False,
        )
    )
    model.update(tree_map(lambda weight: weight * 3, model.parameters()))
    mx.eval(model.parameters())
    return model


def make_trunk(model: nn.Module) -> CausalTrunk:
    trunk = find_trunk(model, Routes())
    assert trunk is not None
    return trunk


def text(number: int, length: int) -> list[int]:
    return [(3 + 11 * number + 5 * at * at) % VOCABULARY for at in range(length)]
