"""Folders of models that compute nothing, whose weights take memory and time to load. Edge."""

import json
import time
from pathlib import Path

import msgspec

from mlxsup.worker.engine.interface import ReportLoad

_WEIGHTS = "model.safetensors"
_PACE = "null.json"
_PIECES = 20
_PAGE_BYTES = 4096


class Pace(msgspec.Struct, frozen=True):
    load_s: float


def make_null_model(folder: Path, weights_bytes: int, load_s: float) -> Path:
    """What passes for a model that is read in `load_s`; on the disk it takes next to nothing."""
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}), encoding="utf-8"
    )
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    (folder / _PACE).write_bytes(msgspec.json.encode(Pace(load_s)))
    weights_bytes -= weights_bytes % 4
    entry = {"dtype": "F32", "shape": [weights_bytes // 4], "data_offsets": [0, weights_bytes]}
    header = json.dumps({"weights": entry}).encode()
    with (folder / _WEIGHTS).open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + weights_bytes)
    return folder


def load_null_weights(folder: Path, report: ReportLoad) -> bytearray | None:
    """As much memory, in as long; None for a folder of another kind."""
    if not (folder / _PACE).exists():
        return None
    pace = msgspec.json.decode((folder / _PACE).read_bytes(), type=Pace)
    weights = bytearray((folder / _WEIGHTS).stat().st_size)
    began_s = time.monotonic()
    for piece in range(1, _PIECES + 1):
        start, end = len(weights) * (piece - 1) // _PIECES, len(weights) * piece // _PIECES
        # Memory is only taken by what was written to.
        pages = len(range(start, end, _PAGE_BYTES))
        weights[start:end:_PAGE_BYTES] = b"\1" * pages
        time.sleep(max(0.0, began_s + pace.load_s * piece / _PIECES - time.monotonic()))
        report("weights", end, len(weights))
    return weights
