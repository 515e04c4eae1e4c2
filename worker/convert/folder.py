"""Writes the MLX model folder. Edge."""

import json
from pathlib import Path

import mlx.core as mx

from mlxsup.worker.convert.config import Json, llama_config, special_tokens
from mlxsup.worker.convert.gguf import read_gguf
from mlxsup.worker.convert.names import mlx_name
from mlxsup.worker.convert.tokenizer import build_tokenizer, tokenizer_config


def convert(source: Path, target: Path) -> None:
    """Write the model in the GGUF `source` into the folder `target`, which may exist and must be empty.

    The weights keep their values and types. The same GGUF gives the same bytes.

    Raises:
        RefusedError: this GGUF isn't converted; nothing has been written.
        OSError: the folder can't be written.
    """
    tensors, metadata = read_gguf(source)
    weights = dict(sorted((mlx_name(name), array) for name, array in tensors.items()))
    config = llama_config(metadata, {name: tuple(array.shape) for name, array in weights.items()})
    tokenizer, tokens = build_tokenizer(metadata), tokenizer_config(metadata)
    template = metadata.text("tokenizer.chat_template")

    target.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(target / "model.safetensors"), weights, metadata={"format": "mlx"})
    _write_json(target / "config.json", config)
    _write_json(target / "tokenizer_config.json", tokens)
    _write_json(target / "generation_config.json", special_tokens(metadata))
    (target / "tokenizer.json").write_text(tokenizer.to_str(pretty=False), encoding="utf-8")
    (target / "chat_template.jinja").write_text(template, encoding="utf-8")


def _write_json(path: Path, document: Json) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
