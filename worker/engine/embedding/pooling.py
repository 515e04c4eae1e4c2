"""How one vector is made of the vectors of a text's tokens, as the model's folder says: sentence-transformers' files."""

import json
import re
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_FOLDER = re.compile(r"[A-Za-z0-9_]{1,64}")
_FILE_BYTES_MAX = 64 * 1024


class Pooling(StrEnum):
    MEAN = "mean"
    LAST = "lasttoken"
    FIRST = "cls"


# As older files say it.
_FLAGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}


class UnsupportedPoolingError(Exception):
    """Its text says what the folder asks for, and that this engine has no such thing."""


def read_pooling(folder: Path) -> Pooling:
    """The mean, where the folder says nothing.

    Raises:
        UnsupportedPoolingError: it asks for something else than one pooling of the last hidden states.
    """
    modules = _read(folder / "modules.json", [])
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    for kind in kinds:
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise UnsupportedPoolingError(
                f"its modules.json has a layer that this engine doesn't know: {kind[:40]}"
            )
    if "Pooling" not in kinds:
        return Pooling.MEAN
    path = str(modules[kinds.index("Pooling")].get("path", ""))
    if not _FOLDER.fullmatch(path) or not (folder / path / "config.json").is_file():
        raise UnsupportedPoolingError(
            "its folder lacks the file that says how it is pooled; pull or copy it again"
        )
    return _pooling(_read(folder / path / "config.json", {}))


def _pooling(config: dict[str, Any]) -> Pooling:
    modes = config.get("pooling_mode") or [mode for flag, mode in _FLAGS.items() if config.get(flag)]
    names = [modes] if isinstance(modes, str) else list(modes)
    if len(names) != 1 or names[0] not in list(Pooling):
        raise UnsupportedPoolingError(
            f"it is pooled by {', '.join(map(str, names))[:80] or 'nothing'}, which this engine has not"
        )
    return Pooling(names[0])


def weights(pooling: Pooling, lengths: list[int], begin: int, end: int) -> npt.NDArray[np.float32]:
    """What each of the columns from `begin` to `end` counts in its row's vector, of shape [rows, columns]."""
    columns = np.arange(begin, end)[None, :]
    rows = np.array(lengths)[:, None]
    counts: npt.NDArray[Any]
    match pooling:
        case Pooling.MEAN:
            counts = (columns < rows) / rows
        case Pooling.LAST:
            counts = columns == rows - 1
        case Pooling.FIRST:
            counts = np.broadcast_to(columns == 0, (len(lengths), end - begin))
    return np.asarray(counts, dtype=np.float32)


def _read(file: Path, otherwise: Any) -> Any:
    """What the JSON file holds, if it is there, of the type of `otherwise`."""
    if not file.is_file():
        return otherwise
    try:
        with file.open("rb") as opened:
            found = json.loads(opened.read(_FILE_BYTES_MAX))
    except ValueError as error:
        raise UnsupportedPoolingError(
            f"its {file.name} is not readable as JSON; pull or copy it again"
        ) from error
    if not isinstance(found, type(otherwise)):
        raise UnsupportedPoolingError(f"its {file.name} is not what it should be; pull or copy it again")
    return found
