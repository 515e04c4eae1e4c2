"""What a GGUF's tensors are called in an MLX llama model. Pure."""

import re

from mlxsup.worker.convert.metadata import RefusedError

_OF_A_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OF_THE_MODEL = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
# `scales` and `biases` are MLX's quantisation of `weight`; a layer's own `bias` is not among them.
_BLOCK = re.compile(r"blk\.(0|[1-9]\d{0,3})\.([a-z_]+)\.(weight|scales|biases)")
_MODEL = re.compile(r"([a-z_]+)\.(weight|scales|biases)")


def mlx_name(gguf_name: str) -> str:
    """`blk.3.attn_q.scales` is `model.layers.3.self_attn.q_proj.scales`.

    Raises:
        RefusedError: for a tensor that the conversion doesn't know: leaving one out would load, and be wrong.
    """
    if (match := _BLOCK.fullmatch(gguf_name)) and (module := _OF_A_BLOCK.get(match[2])):
        return f"model.layers.{match[1]}.{module}.{match[3]}"
    if (match := _MODEL.fullmatch(gguf_name)) and (module := _OF_THE_MODEL.get(match[1])):
        return f"{module}.{match[2]}"
    raise RefusedError(f"cannot convert: the tensor {gguf_name!r} isn't one of a llama model")
