"""The config.json of a converted llama model, from the GGUF's metadata and the tensors' shapes. Pure."""

import struct
from collections import Counter
from collections.abc import Mapping

from mlxsup.worker.convert.metadata import Metadata, RefusedError

Json = dict[str, object]

# The number of weights that share one scale and one bias in every block format that MLX reads as it is.
_GROUP_SIZE = 32


def llama_config(metadata: Metadata, shapes: Mapping[str, tuple[int, ...]]) -> Json:
    """What mlx-lm's llama needs to know.

    Args:
        metadata: of the GGUF.
        shapes: of the tensors, by their MLX names; a quantised weight's as stored, 32 bits an element.

    Raises:
        RefusedError: another architecture, a scaled rope, or shapes that contradict each other.
    """
    if (architecture := metadata.text("general.architecture")) != "llama":
        raise RefusedError(f"cannot convert: the architecture {architecture!r}; only 'llama' is known")
    if (
        "llama.rope.scaling.type" in metadata
        and (scaling := metadata.text("llama.rope.scaling.type")) != "none"
    ):
        raise RefusedError(f"cannot convert: rope scaling of type {scaling!r}")
    if "llama.expert_count" in metadata and metadata.integer("llama.expert_count"):
        raise RefusedError("cannot convert: a mixture of experts")
    hidden, heads = metadata.integer("llama.embedding_length"), metadata.integer("llama.attention.head_count")
    if heads == 0 or hidden % heads:
        raise RefusedError(f"cannot convert: a width of {hidden} doesn't divide among {heads} heads")
    head_dim = hidden // heads
    if (
        "llama.rope.dimension_count" in metadata
        and metadata.integer("llama.rope.dimension_count") != head_dim
    ):
        raise RefusedError("cannot convert: rotary embedding of a part of each head")
    config: Json = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": metadata.integer("llama.feed_forward_length"),
        "num_hidden_layers": metadata.integer("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.integer("llama.attention.head_count_kv"),
        "head_dim": head_dim,
        "max_position_embeddings": metadata.integer("llama.context_length"),
        "vocab_size": len(metadata.texts("tokenizer.ggml.tokens")),
        "rms_norm_eps": as_written(metadata.real("llama.attention.layer_norm_rms_epsilon")),
        "rope_theta": as_written(metadata.real("llama.rope.freq_base")),
        # GGUF stores the rows of q and k in the order of the original, interleaved rotary embedding.
        "rope_traditional": True,
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        "tie_word_embeddings": "lm_head.weight" not in shapes,
        **special_tokens(metadata),
    }
    if quantization := _quantization(shapes):
        config["quantization"] = quantization
    return config


def special_tokens(metadata: Metadata) -> Json:
    """`bos_token_id`, `eos_token_id` and `pad_token_id`, as far as the GGUF names them."""
    kinds = {"bos": "bos", "eos": "eos", "pad": "padding"}
    keys = {f"{kind}_token_id": f"tokenizer.ggml.{key}_token_id" for kind, key in kinds.items()}
    return {name: metadata.integer(key) for name, key in keys.items() if key in metadata}


def as_written(number: float) -> float:
    """The shortest decimal that is the same 32-bit float: 1e-05 rather than 9.999999747378752e-06."""
    candidates = (float(f"{number:.{digits}g}") for digits in range(1, 10))
    return next((short for short in candidates if _is_stored_as(short, number)), number)


def _is_stored_as(short: float, number: float) -> bool:
    try:
        return struct.pack("<f", short) == struct.pack("<f", number)
    except OverflowError:
        # Rounded up, beyond the largest one.
        return False


def _quantization(shapes: Mapping[str, tuple[int, ...]]) -> Json | None:
    """The `quantization` of config.json: the commonest width for all, the others by module."""
    modules = [name.removesuffix(".scales") for name in shapes if name.endswith(".scales")]
    bits = {module: _bits(module, shapes) for module in modules}
    if not bits:
        return None
    [(common, _)] = Counter(bits.values()).most_common(1)
    others: Json = {
        module: {"group_size": _GROUP_SIZE, "bits": width}
        for module, width in sorted(bits.items())
        if width != common
    }
    return {"group_size": _GROUP_SIZE, "bits": common, **others}


def _bits(module: str, shapes: Mapping[str, tuple[int, ...]]) -> int:
    words, groups = shapes[f"{module}.weight"][-1], shapes[f"{module}.scales"][-1]
    bits, rest = divmod(words * 32, groups * _GROUP_SIZE)
    if rest or bits not in (2, 3, 4, 5, 6, 8):
        raise RefusedError(f"cannot convert: {module} is quantised in a way that MLX doesn't know")
    return bits
