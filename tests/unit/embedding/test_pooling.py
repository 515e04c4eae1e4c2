"""What a model's folder says of how its vectors are made."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlxsup.worker.engine.embedding.pooling import Pooling, UnsupportedPoolingError, read_pooling, weights

TYPES = "sentence_transformers.models."
MODULES = [
    {"idx": 0, "path": "", "type": TYPES + "Transformer"},
    {"idx": 1, "path": "1_Pooling", "type": TYPES + "Pooling"},
    {"idx": 2, "path": "2_Normalize", "type": TYPES + "Normalize"},
]


def write(folder: Path, modules: Any, pooling: Any = None) -> Path:
    (folder / "modules.json").write_text(json.dumps(modules))
    if pooling is not None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def test_a_folder_that_says_nothing_is_pooled_by_the_mean(tmp_path: Path) -> None:
    assert read_pooling(tmp_path) is Pooling.MEAN
    assert read_pooling(write(tmp_path, MODULES[:1])) is Pooling.MEAN


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, Pooling.LAST),
        ({"pooling_mode_mean_tokens": True}, Pooling.MEAN),
        ({"pooling_mode_cls_token": True, "word_embedding_dimension": 8}, Pooling.FIRST),
        ({"pooling_mode": "lasttoken"}, Pooling.LAST),
        ({"pooling_mode": ["cls"]}, Pooling.FIRST),
    ],
)
def test_the_pooling_that_a_folder_names_is_taken(
    tmp_path: Path, config: dict[str, Any], pooling: Pooling
) -> None:
    assert read_pooling(write(tmp_path, MODULES, config)) is pooling


@pytest.mark.parametrize(
    ("modules", "config"),
    [
        (MODULES, None),
        (MODULES, {"pooling_mode_max_tokens": True}),
        (MODULES, {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}),
        (MODULES, {}),
        (MODULES, []),
        ([*MODULES, {"path": "2_Dense", "type": TYPES + "Dense"}], {"pooling_mode": "mean"}),
        ([MODULES[0], {**MODULES[1], "path": "../1_Pooling"}], {"pooling_mode": "mean"}),
        ({}, None),
    ],
)
def test_what_this_engine_does_not_do_is_said(tmp_path: Path, modules: Any, config: Any) -> None:
    with pytest.raises(UnsupportedPoolingError):
        read_pooling(write(tmp_path, modules, config))


def test_a_file_that_is_no_json_is_said(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text("[")
    with pytest.raises(UnsupportedPoolingError, match=r"modules\.json"):
        read_pooling(tmp_path)


@pytest.mark.parametrize("pooling", Pooling)
@pytest.mark.parametrize("cut", range(6))
def test_columns_count_the_same_in_whatever_pieces_they_are_read(pooling: Pooling, cut: int) -> None:
    lengths = [1, 3, 5]
    whole = weights(pooling, lengths, 0, 5)
    pieces = np.concatenate([weights(pooling, lengths, 0, cut), weights(pooling, lengths, cut, 5)], axis=1)

    assert np.array_equal(whole, pieces)
    assert whole.sum(axis=1) == pytest.approx([1.0, 1.0, 1.0])
    assert not whole[0, 1:].any()
