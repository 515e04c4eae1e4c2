"""Makes mlx-vlm's model of a folder. Only here is it loaded."""

from pathlib import Path
from typing import Any

import mlx.nn as nn

from mlxsup.worker.engine.vision.sight import SightedModel


def read_sighted_model(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """With its configuration, as a text model's would say it."""
    from mlx_vlm.utils import load_config, load_model

    model = load_model(folder, lazy=True)
    config: dict[str, Any] = load_config(folder)
    text = getattr(model.config, "text_config", model.config)
    known = model.config if config["model_type"] == "phi3_v" else text
    if config["model_type"] == "phi3_v":
        _shorten(model, config)
    return SightedModel(model), {
        **config,
        "vocab_size": int(known.vocab_size),
        "max_position_embeddings": int(
            config.get("max_position_embeddings") or known.max_position_embeddings
        ),
        "eos_token_id": getattr(model.config, "eos_token_id", None) or config.get("eos_token_id"),
    }


def _shorten(model: nn.Module, config: dict[str, Any]) -> None:
    """To the context that it was made for: beyond it other frequencies hold for all rows of a batch, and for whole texts."""
    ropes = [layer.self_attn.rope for layer in model.layers]
    if not all(hasattr(rope, "original_max_position_embeddings") for rope in ropes):
        return
    for rope in ropes:
        rope._long_freqs, rope._long_scale = rope._short_freqs, rope._short_scale  # noqa: SLF001
    config["max_position_embeddings"] = int(ropes[0].original_max_position_embeddings)
