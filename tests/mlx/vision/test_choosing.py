"""Which engine a model that sees gets, and what is said where mlx-vlm is not installed."""

import importlib.util
import json
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Literal

import pytest

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.worker_link import Load
from mlxsup.worker.engine import load
from mlxsup.worker.engine.text import TextEngine

_find = importlib.util.find_spec


def order(folder: Path, kind: str, kv_bits: Literal[4, 8] | None = None) -> Load:
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    return Load(
        model_path=str(folder),
        context_tokens_max=None,
        batch_sequences_max=1,
        prefill_chunk_tokens=16,
        float32=None,
        wired_limit_bytes=0,
        cache_limit_bytes=None,
        heartbeat_interval_s=1.0,
        kv_bits=kv_bits,
    )


@pytest.fixture
def without_mlx_vlm(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> ModuleSpec | None:
        return None if name == "mlx_vlm" else _find(name)

    monkeypatch.setattr(load, "find_spec", find)


@pytest.mark.usefixtures("without_mlx_vlm")
@pytest.mark.parametrize("kind", ["phi3_v", "bert", "xlm-roberta"])
def test_without_mlx_vlm_the_error_says_what_to_install(tmp_path: Path, kind: str) -> None:
    with pytest.raises(RpcError) as raised:
        load.engine_for(order(tmp_path, kind))

    assert raised.value.kind is ErrorKind.MODEL_LOAD_FAILED
    assert "pip install 'mlxsup[vision]'" in raised.value.message


@pytest.mark.usefixtures("without_mlx_vlm")
@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "llava", "llama"])
def test_without_mlx_vlm_what_mlx_lm_reads_is_a_text_model(tmp_path: Path, kind: str) -> None:
    assert load.engine_for(order(tmp_path, kind)) is TextEngine


def test_a_quantised_cache_is_not_for_models_that_see(tmp_path: Path) -> None:
    pytest.importorskip("mlx_vlm", reason="mlx-vlm comes with mlxsup[vision]")
    with pytest.raises(RpcError, match="kv_bits"):
        load.engine_for(order(tmp_path, "llava", kv_bits=8))


@pytest.mark.parametrize("text", ["", "[]", '{"model_type": 7}', "{}"])
def test_of_a_folder_that_says_no_type_the_loader_says_what_is_wrong(tmp_path: Path, text: str) -> None:
    wanted = order(tmp_path, "llava")
    (tmp_path / "config.json").write_text(text)

    assert load.engine_for(wanted) is TextEngine
