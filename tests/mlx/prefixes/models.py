"""Models of random weights: with plain caches, with some that look back so far only, and with some that keep one state."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map
from mlx_lm.models import lfm2, llama
from mlx_lm.models.cache import make_prompt_cache

from mlxsup.worker.engine.member import Member
from mlxsup.worker.engine.sampling import greedy

KINDS = ("plain", "sliding", "hybrid")
VOCABULARY = 97
ANSWER_TOKENS = 20
# Rounding in other company is far below that.
_MARGIN_MIN = 1e-3
_TOKENS_MAX = 1000


def make_model(kind: str) -> nn.Module:
    mx.random.seed(7)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
    }
    if kind == "hybrid":
        model: nn.Module = lfm2.Model(
            lfm2.ModelArgs(
                model_type="lfm2",
                max_position_embeddings=1000,
                norm_eps=1e-5,
                conv_bias=False,
                conv_L_cache=3,
                block_dim=32,
                block_multiple_of=8,
                block_ffn_dim_multiplier=1.0,
                block_auto_adjust_ff_dim=False,
                block_ff_dim=64,
                layer_types=["conv", "full_attention"] * 2,
                **sizes,
            )
        )
    else:
        other = "sliding_attention" if kind == "sliding" else "full_attention"
        model = llama.Model(
            llama.ModelArgs(
                model_type="llama",
                intermediate_size=64,
                rms_norm_eps=1e-5,
                layer_types=["full_attention", other] * 2,
                sliding_window=24,
                tie_word_embeddings=False,
                **sizes,
            )
        )
    # As they are drawn it would say one word for ever, whatever it was told.
    model.update(tree_map(lambda weight: weight * 3, model.parameters()))
    mx.eval(model.parameters())
    return model


def alone(model: nn.Module, prompt: list[int]) -> list[int] | None:
    """Token by token, with nothing of ours; None where a token is so near to another that rounding could decide."""
    caches = make_prompt_cache(model)
    logits = model(mx.array([prompt]), cache=caches)[0, -1]
    tokens: list[int] = []
    while len(tokens) < ANSWER_TOKENS:
        order = mx.argsort(logits)
        if (logits[order[-1]] - logits[order[-2]]).item() < _MARGIN_MIN:
            return None
        token = order[-1].item()
        assert isinstance(token, int)
        tokens.append(token)
        logits = model(mx.array([tokens[-1:]]), cache=caches)[0, -1]
    return tokens


def member(model: nn.Module, id: int, prompt: list[int], **terms: Any) -> Member:
    """Greedy, and it shares with everybody, if `terms` do not say otherwise."""
    return Member(
        id=id,
        tokens=list(prompt),
        prompt_tokens=len(prompt),
        tokens_max=len(prompt) + _TOKENS_MAX,
        caches=make_prompt_cache(model),
        **{"urgency": 2, "sampler": greedy, "processors": [], "cache_key": "", **terms},
    )
