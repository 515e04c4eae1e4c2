"""Loads a model folder that the supervisor has checked: weights with progress, tokenizer, one warm step."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.cache import KVCache
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import dequantize_model, load_model, load_tokenizer

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.worker.engine.interface import ReportLoad
from mlxsup.worker.engine.quantised import CacheMaker

# Where a model's configuration says nothing of how long a text may be.
CONTEXT_TOKENS_OTHERWISE = 4096
# Of models that take more than text: the tokenizer's own template, where there is one, knows only that.
_PROCESSOR_TEMPLATE = "chat_template.json"
# Caches grow by so many tokens at a time.
_KV_TOKENS: tuple[int, int] = (KVCache.step, 2 * KVCache.step)


ReadModel = Callable[[Path], tuple[nn.Module, dict[str, Any]]]
"""Makes the model of a folder, whose weights need not be in memory yet, and gives its configuration too."""


def read_text_model(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    model, config = load_model(folder, lazy=True)
    return model, config


def load_weights(
    folder: Path, float32: bool | None, report: ReportLoad, read_model: ReadModel = read_text_model
) -> tuple[nn.Module, dict[str, Any]]:
    """The model with its weights in memory, and its configuration.

    Raises:
        RpcError: MODEL_LOAD_FAILED with what is wrong with the folder.
    """
    try:
        model, config = read_model(folder)
    except RpcError:
        raise
    except Exception as error:
        raise _load_failed(error) from error
    expand = mx.default_device() == mx.cpu if float32 is None else float32
    if expand:
        # Anything else is emulated on the CPU: float16 runs there at a thirtieth of the speed.
        model.set_dtype(mx.float32)
        dequantize_model(model)
    arrays = _arrays(model)
    total = sum(array.nbytes for array in arrays)
    done = 0
    report("weights", 0, total)
    for array in arrays:
        mx.eval(array)
        done += array.nbytes
        report("weights", done, total)
    # An error of the GPU may come late, and belongs to the load.
    mx.synchronize()
    return model, config


def load_codec_tokenizer(folder: Path, config: dict[str, Any]) -> TokenizerWrapper:
    try:
        tokenizer = load_tokenizer(folder, eos_token_ids=_as_list(config.get("eos_token_id")))
        template = folder / _PROCESSOR_TEMPLATE
        if template.is_file():
            tokenizer._tokenizer.chat_template = json.loads(template.read_text())["chat_template"]  # noqa: SLF001
            tokenizer.has_chat_template = True
        return tokenizer
    except Exception as error:
        raise _load_failed(error, "its tokenizer can't be read: ") from error


def warm_up(model: nn.Module, report: ReportLoad) -> None:
    """One step, so that the first request does not pay for compiling kernels."""
    report("warm", 0, 1)
    mx.eval(model(mx.array([[0]])))
    report("warm", 1, 1)


def kv_bytes_per_token(model: nn.Module, maker: CacheMaker) -> int:
    """What one more token of a sequence takes at most; a layer that only looks back so far stops growing there.

    The shapes of a pass are known without computing it.
    """
    sizes: list[int] = []
    for tokens in _KV_TOKENS:
        caches = maker.make()
        model(mx.zeros((1, tokens), dtype=mx.int32), cache=caches)
        sizes.append(sum(int(cache.nbytes) for cache in caches))
    return (sizes[1] - sizes[0]) // (_KV_TOKENS[1] - _KV_TOKENS[0])


def context_tokens(config: dict[str, Any], configured_max: int | None) -> int:
    """How long prompt and answer may be together: the model's own bound, and the configured one."""
    text_config = config.get("text_config") or {}
    own = config.get("max_position_embeddings") or text_config.get("max_position_embeddings")
    bound = int(own) if own else CONTEXT_TOKENS_OTHERWISE
    return min(bound, configured_max) if configured_max else bound


def parameter_bytes(model: nn.Module) -> int:
    return sum(array.nbytes for array in _arrays(model))


def _arrays(model: nn.Module) -> list[mx.array]:
    leaves: list[tuple[str, mx.array]] = tree_flatten(model.parameters())  # type: ignore[assignment]
    return [array for _, array in leaves]


def float_types(model: nn.Module) -> list[str]:
    """The types that it computes in, by their names in MLX."""
    types = {array.dtype for array in _arrays(model) if mx.issubdtype(array.dtype, mx.floating)}
    return sorted(str(each).removeprefix("mlx.core.") for each in types)


def vocabulary_tokens(config: dict[str, Any]) -> int:
    text_config = config.get("text_config") or {}
    return int(config.get("vocab_size") or text_config["vocab_size"])


def _as_list(eos: Any) -> list[int] | None:
    if eos is None:
        return None
    return list(eos) if isinstance(eos, list) else [int(eos)]


def _load_failed(error: Exception, where: str = "") -> RpcError:
    # The library's own words can name folders of this machine; the first line is enough and is cut of them.
    lines = str(error).splitlines() or [type(error).__name__]
    words = " ".join(word for word in lines[0].split() if "/" not in word)
    if isinstance(error, ValueError) and "not supported" in words:
        advice = "check that mlx-lm supports this architecture, or upgrade mlx-lm"
    else:
        advice = "pull or convert the model again"
    return RpcError(ErrorKind.MODEL_LOAD_FAILED, f"cannot load the model: {where}{words[:300]}; {advice}")
