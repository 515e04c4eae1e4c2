"""Models of random weights that see, as folders: one of each family, with a tokenizer of bytes and a template like its own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map
from mlx_vlm.utils import get_model_and_args, update_module_configs
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

BYTES = 256
END = "<|im_end|>"
CONTEXT = 2048
TEXT = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": False,
}
# As of LLaVA 1.5 in its newer form: parts, and nothing of what is no part.
LLAVA = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
# As of Qwen2-VL: parts, or a text.
QWEN = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# As of Phi-3.5-Vision: a text, with marks in it.
PHI = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
QWEN_MARKS = ("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
CLIP = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 28},
    "crop_size": {"height": 28, "width": 28},
    "do_convert_rgb": True,
    "image_mean": [0.48, 0.46, 0.41],
    "image_std": [0.27, 0.26, 0.28],
}


def _write_tokenizer(folder: Path, template: str | None, marks: tuple[str, ...]) -> dict[str, int]:
    """The numbers of the marks."""
    letters = sorted(ByteLevel.alphabet())
    backend = Tokenizer(BPE({letter: at for at, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = ByteLevelDecoder()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, pad_token=END)
    tokenizer.add_special_tokens({"additional_special_tokens": list(marks)})
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return {mark: int(tokenizer.convert_tokens_to_ids(mark)) for mark in (END, *marks)}


def _write_model(folder: Path, config: dict[str, Any]) -> Path:
    mx.random.seed(3)
    # Its code writes into it, and reads that again.
    read = json.loads(json.dumps(config))
    code, _ = get_model_and_args(config=read)
    model = code.Model(
        update_module_configs(code.ModelConfig.from_dict(read), code, read, ["text", "vision"])
    )
    # As they are drawn it would say one word for ever, whatever it saw.
    weights = dict(tree_flatten(tree_map(lambda weight: weight * 2, model.parameters())))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def make_llava(folder: Path) -> Path:
    marks = _write_tokenizer(folder, None, ("<image>",))
    vocabulary = BYTES + len(marks)
    # Where it is in older folders.
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": LLAVA}))
    (folder / "preprocessor_config.json").write_text(json.dumps(CLIP))
    extra = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "LlavaProcessor", **extra}))
    vision = {
        "model_type": "clip_vision_model",
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "projection_dim": 32,
    }
    return _write_model(
        folder,
        {
            "model_type": "llava",
            "architectures": ["LlavaForConditionalGeneration"],
            "image_token_index": marks["<image>"],
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default",
            "eos_token_id": marks[END],
            "vocab_size": vocabulary,
            "text_config": {"model_type": "llama", "vocab_size": vocabulary, **TEXT},
            "vision_config": vision,
        },
    )


def _make_qwen(folder: Path, kind: str, vision: dict[str, Any]) -> Path:
    marks = _write_tokenizer(folder, QWEN, QWEN_MARKS)
    processor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": 14,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "min_pixels": 56 * 56,
        "max_pixels": 112 * 112,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return _write_model(
        folder,
        {
            "model_type": kind,
            "vocab_size": BYTES + len(marks),
            "eos_token_id": marks[END],
            "image_token_id": marks["<|image_pad|>"],
            "video_token_id": marks["<|video_pad|>"],
            "vision_start_token_id": marks["<|vision_start|>"],
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
            **TEXT,
            "vision_config": {"model_type": kind, "patch_size": 14, "spatial_merge_size": 2, **vision},
        },
    )


def make_qwen2(folder: Path) -> Path:
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": TEXT["hidden_size"], "num_heads": 2, "mlp_ratio": 2}
    return _make_qwen(folder, "qwen2_vl", vision)


def make_qwen25(folder: Path) -> Path:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": TEXT["hidden_size"],
        "num_heads": 2,
        "fullatt_block_indexes": [1],
    }
    return _make_qwen(folder, "qwen2_5_vl", vision)


def make_phi3(folder: Path) -> Path:
    """Its tower has one size, whatever the configuration says: a test makes it smaller before."""
    marks = _write_tokenizer(folder, PHI, ())
    (folder / "preprocessor_config.json").write_text(json.dumps({"num_crops": 1, "num_img_tokens": 144}))
    return _write_model(
        folder,
        {
            "model_type": "phi3_v",
            "vocab_size": BYTES + len(marks),
            "eos_token_id": marks[END],
            "original_max_position_embeddings": CONTEXT,
            "rope_scaling": {
                "type": "su",
                "short_factor": [1.0] * 8,
                "long_factor": [2.0] * 8,
            },
            **TEXT,
            "max_position_embeddings": 4 * CONTEXT,
        },
    )


MAKERS: dict[str, Callable[[Path], Path]] = {
    "llava": make_llava,
    "qwen2_vl": make_qwen2,
    "qwen2_5_vl": make_qwen25,
    "phi3_v": make_phi3,
}
