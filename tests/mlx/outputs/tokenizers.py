"""Tokenizers of bytes with markers and chat templates of their own, as folders that mlx-lm reads, also with a model."""

import json
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from mlxsup.worker.engine.codec import TextCodec
from mlxsup.worker.engine.loading import load_codec_tokenizer

MARKERS = ("<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>")
THINKING = ("<think>", "</think>")

_TURNS = """\
{%- for message in messages %}
    {%- if message.role == "tool" %}
        {{- "<|im_start|>user\\n<tool_response>\\n" + message.content + "\\n</tool_response><|im_end|>\\n" }}
    {%- else %}
        {{- "<|im_start|>" + message.role + "\\n" + message.content }}
        {%- for tool_call in message.tool_calls or [] %}
            {%- set tool_call = tool_call.function %}
            {{- '\\n<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- "<|im_end|>\\n" }}
    {%- endif %}
{%- endfor %}
"""
_TOOLS = """\
{%- if tools %}
    {{- "<|im_start|>system\\n<tools>" }}
    {%- for tool in tools %}{{ "\\n" + (tool | tojson) }}{% endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
"""
_ASSISTANT = '{%- if add_generation_prompt %}{{ "<|im_start|>assistant\\n" }}{% endif %}'

# Like Hermes and Qwen 2.5.
HERMES = _TOOLS + _TURNS + _ASSISTANT
# Like Qwen 3.
QWEN3 = HERMES + (
    "{%- if add_generation_prompt and enable_thinking is defined and enable_thinking is false %}"
    '{{ "<think>\\n\\n</think>\\n\\n" }}{% endif %}'
)
# Like QwQ and DeepSeek R1.
BEGUN = HERMES + '{%- if add_generation_prompt %}{{ "<think>\\n" }}{% endif %}'
# Like SmolLM2: it knows no tools, though the vocabulary has markers.
PLAIN = (
    '{% for message in messages %}{{ "<|im_start|>" + message.role + "\\n" + message.content + "<|im_end|>\\n" }}{% endfor %}'
    + _ASSISTANT
)
# Like Llama 3.1: it shows tools, and calls of them have no markers.
UNMARKED = "{%- if tools %}{{ tools | tojson }}{% endif %}{% for message in messages %}{{ message.content }}{% endfor %}"


def make_codec(folder: Path, template: str, markers: tuple[str, ...] = MARKERS) -> TextCodec:
    letters = sorted(ByteLevel.alphabet())
    backend = Tokenizer(BPE({letter: at for at, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = ByteLevelDecoder()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": list(markers)})
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return TextCodec(load_codec_tokenizer(folder, {}))


def make_folder(folder: Path, template: str, markers: tuple[str, ...] = MARKERS) -> Path:
    """A Llama of random weights, with such a tokenizer."""
    make_codec(folder, template, markers)
    config = {
        "model_type": "llama",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": 288,
        "max_position_embeddings": 2048,
    }
    (folder / "config.json").write_text(json.dumps(config))
    model = llama.Model(llama.ModelArgs.from_dict(config))
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    return folder
