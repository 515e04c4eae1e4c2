"""What the conversion decides: names, configuration, tokenizer. Without MLX."""

import struct
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlxsup.worker.convert.config import as_written, llama_config
from mlxsup.worker.convert.metadata import Metadata, RefusedError, Value
from mlxsup.worker.convert.names import mlx_name
from mlxsup.worker.convert.tokenizer import build_tokenizer, tokenizer_config

LLAMA: dict[str, Value] = {
    "general.architecture": "llama",
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 128,
    "llama.block_count": 2,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 9.999999747378752e-06,
    "llama.context_length": 512,
    "llama.rope.freq_base": 100000.0,
    "llama.rope.dimension_count": 16,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": ["<|end|>", "a", "b", "ab", "<tool>"],
    "tokenizer.ggml.token_type": [3, 1, 1, 1, 4],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.eos_token_id": 0,
    "tokenizer.ggml.padding_token_id": 0,
}
SHAPES: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (5, 64)}


def llama(**changes: Any) -> Metadata:
    values = {**LLAMA, **{key.replace("__", "."): value for key, value in changes.items()}}
    return Metadata({key: value for key, value in values.items() if value is not None})


@pytest.mark.parametrize(
    ("gguf", "mlx"),
    [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("token_embd.scales", "model.embed_tokens.scales"),
        ("output_norm.weight", "model.norm.weight"),
        ("output.weight", "lm_head.weight"),
        ("blk.0.attn_q.biases", "model.layers.0.self_attn.q_proj.biases"),
        ("blk.29.attn_output.weight", "model.layers.29.self_attn.o_proj.weight"),
        ("blk.7.ffn_norm.weight", "model.layers.7.post_attention_layernorm.weight"),
        ("blk.7.ffn_down.scales", "model.layers.7.mlp.down_proj.scales"),
    ],
)
def test_a_tensor_gets_its_name_in_mlx(gguf: str, mlx: str) -> None:
    assert mlx_name(gguf) == mlx


@pytest.mark.parametrize(
    "name", ["", "blk.0.attn_q.bias", "blk.00.attn_q.weight", "blk.0.ffn_up_exps.weight", "rope_freqs.weight"]
)
def test_a_tensor_that_is_not_known_is_refused_by_name(name: str) -> None:
    with pytest.raises(RefusedError, match=f"tensor '{name}'"):
        mlx_name(name)


def test_the_configuration_is_the_metadatas() -> None:
    config = llama_config(llama(), SHAPES)
    wanted = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "vocab_size": 5,
        "rms_norm_eps": 1e-05, "rope_theta": 100000.0, "rope_traditional": True, "eos_token_id": 0,
        "pad_token_id": 0, "tie_word_embeddings": True,
    }  # fmt: skip
    assert {key: config[key] for key in wanted} == wanted
    assert "bos_token_id" not in config
    assert "quantization" not in config


def test_an_output_layer_of_its_own_unties_the_embeddings() -> None:
    assert llama_config(llama(), {**SHAPES, "lm_head.weight": (5, 64)})["tie_word_embeddings"] is False


def test_the_commonest_width_is_everyones_and_the_others_are_named() -> None:
    shapes = {"e.weight": (5, 16), "e.scales": (5, 2), "a.weight": (5, 8), "a.scales": (5, 2)}
    shapes |= {"b.weight": (5, 8), "b.scales": (5, 2)}
    assert llama_config(llama(), shapes)["quantization"] == {
        "group_size": 32,
        "bits": 4,
        "e": {"group_size": 32, "bits": 8},
    }


def test_a_width_that_mlx_does_not_know_is_refused() -> None:
    with pytest.raises(RefusedError, match="a is quantised in a way"):
        llama_config(llama(), {"a.weight": (5, 7), "a.scales": (5, 2)})


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("general__architecture", "qwen2", "architecture 'qwen2'"),
        ("general__architecture", None, "general.architecture is missing"),
        ("llama__rope__scaling__type", "yarn", "rope scaling of type 'yarn'"),
        ("llama__expert_count", 8, "mixture of experts"),
        ("llama__attention__head_count", 0, "among 0 heads"),
        ("llama__attention__head_count", 5, "among 5 heads"),
        ("llama__rope__dimension_count", 8, "a part of each head"),
        ("llama__block_count", "2", "block_count is not a whole number"),
        ("llama__block_count", True, "block_count is not a whole number"),
        ("llama__rope__freq_base", 1, "freq_base is not a number"),
        ("tokenizer__ggml__tokens", [1, 2], "tokens is not a list of texts"),
    ],
)
def test_a_model_that_would_come_out_wrong_is_refused_by_its_reason(
    key: str, value: object, reason: str
) -> None:
    with pytest.raises(RefusedError, match=reason):
        llama_config(llama(**{key: value}), SHAPES)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
@example(3.4025001647762064e38)
def test_a_number_written_shortly_is_the_same_32_bit_number(number: float) -> None:
    assert struct.pack("<f", as_written(number)) == struct.pack("<f", number)


@pytest.mark.parametrize("written", [1e-05, 1e-06, 10000.0, 0.1, 500000.0])
def test_a_number_is_written_as_its_author_wrote_it(written: float) -> None:
    [stored] = struct.unpack("<f", struct.pack("<f", written))
    assert as_written(stored) == written


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("tokenizer__ggml__model", "llama", "'llama' that splits words as 'smollm'"),
        ("tokenizer__ggml__pre", "llama-bpe", "splits words as 'llama-bpe'"),
        ("tokenizer__ggml__add_space_prefix", True, "puts a space in front"),
        ("tokenizer__ggml__add_bos_token", True, "begins every text"),
        ("tokenizer__ggml__token_type", [1], "don't fit together"),
        ("tokenizer__ggml__tokens", ["a", "a", "b", "ab", "c"], "don't fit together"),
        ("tokenizer__ggml__merges", ["a c"], "a merge of the tokenizer"),
        ("tokenizer__ggml__merges", ["ab"], "a merge of the tokenizer"),
    ],
)
def test_a_tokenizer_that_is_not_known_is_refused(key: str, value: object, reason: str) -> None:
    with pytest.raises(RefusedError, match=reason):
        build_tokenizer(llama(**{key: value}))


def test_control_tokens_are_special_and_added_ones_are_text() -> None:
    tokenizer = build_tokenizer(llama())
    assert tokenizer.encode("ab<tool><|end|>").ids == [3, 4, 0]
    assert tokenizer.decode([3, 4, 0]) == "ab<tool>"


def test_a_special_token_outside_of_the_vocabulary_is_refused() -> None:
    assert tokenizer_config(llama(tokenizer__ggml__unknown_token_id=1))["unk_token"] == "a"
    with pytest.raises(RefusedError, match="eos_token_id is 9"):
        tokenizer_config(llama(tokenizer__ggml__eos_token_id=9))
