"""Encoders of random weights by the real mlx-vlm code: each embedding is what its text has alone, and there is no text."""

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("mlx_vlm", reason="mlx-vlm comes with mlxsup[vision]")

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map
from mlx_vlm.encoder_loader import load_encoder_model
from mlx_vlm.utils import get_model_and_args
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.worker_link import Embed, Generate, Load
from mlxsup.worker.engine.embedding.encoder import ENCODERS
from mlxsup.worker.engine.embedding.engine import EmbeddingEngine
from mlxsup.worker.engine.interface import Emission
from mlxsup.worker.engine.load import load_engine
from tests.fakes.requests import GREEDY

NEAR = 1e-5
PAD, FIRST, LAST = 256, 257, 258
CONTEXT = 64
TEXTS = ["a", "some text", "a rather longer text than the others are", "x" * 50]


def make_folder(folder: Path, kind: str, pooling: str) -> Path:
    letters = sorted(ByteLevel.alphabet())
    backend = Tokenizer(BPE({letter: at for at, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = ByteLevelDecoder()
    backend.add_special_tokens(["<pad>", "<s>", "</s>"])
    backend.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", FIRST), ("</s>", LAST)]
    )
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>").save_pretrained(
        folder
    )
    config = {
        "model_type": kind,
        "vocab_size": 259,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        # Of the one kind those up to the padding's are no positions.
        "max_position_embeddings": CONTEXT + (PAD + 1 if kind == "xlm-roberta" else 0),
        "type_vocab_size": 1,
        "local_attention": 8,
        "pad_token_id": PAD,
    }
    (folder / "config.json").write_text(json.dumps(config))
    types = "sentence_transformers.models."
    modules = [{"type": types + "Transformer", "path": ""}, {"type": types + "Pooling", "path": "1_Pooling"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": pooling}))
    mx.random.seed(5)
    code, _ = get_model_and_args(config={**config, "model_type": ENCODERS[kind]})
    model = code.Model(code.ModelConfig.from_dict({**config, "model_type": ENCODERS[kind]}))
    weights = dict(tree_flatten(tree_map(lambda weight: weight * 2, model.parameters())))
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    return folder


def load(folder: Path, **fields: Any) -> EmbeddingEngine:
    order = Load(
        model_path=str(folder),
        context_tokens_max=None,
        batch_sequences_max=4,
        prefill_chunk_tokens=64,
        float32=None,
        wired_limit_bytes=0,
        cache_limit_bytes=None,
        heartbeat_interval_s=1.0,
    )
    return load_engine(msgspec.structs.replace(order, **fields), lambda *_: None)


def embed(engine: EmbeddingEngine, texts: list[str]) -> npt.NDArray[np.float64]:
    engine.submit_texts(1, engine.prepare_texts(Embed(texts=texts)))
    ends: list[Emission] = []
    while not ends:
        ends = engine.step(lambda: False) or []
    assert ends[0].error is None
    return np.array([msgspec.json.decode(vector) for vector in ends[0].embeddings])


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_an_embedding_is_mlx_vlms_own_alone_and_in_company(tmp_path: Path, kind: str, pooling: str) -> None:
    engine = load(make_folder(tmp_path, kind, pooling), self_test=True)
    model = load_encoder_model(tmp_path, model_remapping=ENCODERS)
    model.pooling_config = {"pooling_mode": pooling}
    together = embed(engine, TEXTS)

    for text, found in zip(TEXTS, together, strict=True):
        (tokens,) = engine.prepare_texts(Embed(texts=[text])).texts
        assert tokens[0] == FIRST
        assert found == pytest.approx(np.array(model(mx.array([tokens])).text_embeds)[0], abs=NEAR)
        assert found == pytest.approx(embed(engine, [text])[0], abs=NEAR)


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_text_may_have_the_whole_context_and_no_more(tmp_path: Path, kind: str) -> None:
    engine = load(make_folder(tmp_path, kind, "mean"))

    assert engine.loaded.context_tokens == CONTEXT
    assert np.isfinite(embed(engine, ["x" * (CONTEXT - 2)])).all()
    with pytest.raises(RpcError) as raised:
        engine.prepare_texts(Embed(texts=["a", "x" * (CONTEXT - 1)]))
    assert raised.value.data.path == "$.input[1]"


def test_it_gives_no_text(tmp_path: Path) -> None:
    engine = load(make_folder(tmp_path, "bert", "mean"))
    with pytest.raises(RpcError) as raised:
        engine.prepare(Generate(max_tokens=1, sampling=GREEDY, prompt="a"))

    assert raised.value.kind is ErrorKind.UNSUPPORTED
    assert engine.detokenize(engine.tokenize("abc")) == "abc"


def test_weights_that_nobody_has_checked_are_not_read(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "bert", "mean")
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "model.safetensors").write_bytes(b"")
    with pytest.raises(RpcError) as raised:
        load(folder)

    assert raised.value.kind is ErrorKind.MODEL_LOAD_FAILED
