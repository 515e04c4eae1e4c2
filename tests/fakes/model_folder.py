"""A folder that looks like a small model, with weights of four bytes."""

import json
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "max_position_embeddings": 8192,
    "quantization": {"bits": 4, "group_size": 32, "model.embed_tokens": {"bits": 8}},
}


def safetensors(data: bytes = b"\1\2\3\4") -> bytes:
    entry = {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}
    header = json.dumps({"t": entry}).encode()
    return len(header).to_bytes(8, "little") + header + data


def make_model_folder(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(safetensors())
    return folder
