"""Models that read and say nothing: mlx-vlm's text encoders. They look both ways, so each text is read whole."""

import time
from pathlib import Path
from typing import Any, NoReturn

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.self_test import SelfTestResult
from mlxsup.protocol.worker_link import Load, Loaded, Tune
from mlxsup.worker.engine import loading
from mlxsup.worker.engine.codec import TextCodec
from mlxsup.worker.engine.interface import Emission, IsWanted, Lease, ReportLoad
from mlxsup.worker.engine.member import Caches

# By `model_type`, with mlx-vlm's names for them.
ENCODERS = {"bert": "bert", "xlm-roberta": "xlm_roberta", "modernbert": "modernbert"}


class EncoderTrunk:
    reads_whole = True

    def __init__(self, model: nn.Module, pad_token: int) -> None:
        self._model = model
        self.pad_token = pad_token
        self.dimensions = int(model.config.hidden_size)

    def caches(self) -> Caches:
        return []

    def __call__(self, inputs: mx.array, caches: Caches, lengths: list[int]) -> mx.array:  # noqa: ARG002
        """As `Trunk.__call__`."""
        mask = mx.array(np.arange(inputs.shape[1])[None, :] < np.array(lengths)[:, None]).astype(mx.float32)
        hidden: mx.array = self._model(inputs, attention_mask=mask).last_hidden_state
        return hidden


class EncoderEngine:
    """As an engine for text, of which it gives none."""

    def __init__(self, codec: TextCodec, trunk: EncoderTrunk, loaded: Loaded) -> None:
        self.codec = codec
        self.trunk = trunk
        self.loaded = loaded

    @classmethod
    def load(cls, order: Load, report: ReportLoad) -> "EncoderEngine":
        started_s = time.monotonic()
        folder = Path(order.model_path)
        model, config = loading.load_weights(folder, order.float32, report, _read_encoder)
        report("tokenizer", 0, 1)
        codec = TextCodec(loading.load_codec_tokenizer(folder, config))
        report("tokenizer", 1, 1)
        pad_token = int(config.get("pad_token_id") or 0)
        trunk = EncoderTrunk(model, pad_token)
        report("warm", 0, 1)
        mx.eval(trunk(mx.array([[1]]), [], [1]))
        report("warm", 1, 1)
        loaded = Loaded(
            model_type=str(config["model_type"]),
            context_tokens=loading.context_tokens(config, order.context_tokens_max),
            weights_bytes=loading.parameter_bytes(model),
            vocabulary_tokens=loading.vocabulary_tokens(config),
            load_s=time.monotonic() - started_s,
        )
        return cls(codec, trunk, loaded)

    def prepare(self, _: object) -> NoReturn:
        raise RpcError(ErrorKind.UNSUPPORTED, "this model makes embeddings, and no text; use `embed`")

    def submit(self, id: int, prepared: object) -> NoReturn:  # noqa: ARG002
        raise AssertionError("nothing is prepared")

    def cancel(self, id: int) -> Emission:  # noqa: ARG002
        raise AssertionError("nothing runs")

    give_way = cancel

    def forget(self, id: int) -> None:
        """Nothing is kept."""

    def share(self, lease: Lease) -> None:
        """It reads no prompts of its own."""

    def tune(self, order: Tune) -> None:
        """It computes nothing of its own that could be bounded."""

    @property
    def prefill_tokens(self) -> int:
        return 0

    def step(self, _: IsWanted) -> list[Emission]:
        return []

    def rest(self, is_wanted: IsWanted) -> None:
        """There is nothing that could wait."""

    def step_self_test(self, _: IsWanted) -> SelfTestResult:
        return SelfTestResult(checks=[], seconds=0.0)

    def tokenize(self, text: str) -> list[int]:
        return self.codec.encode(text, special=False)

    def detokenize(self, tokens: list[int]) -> str:
        return self.codec.decode(tokens)


def _read_encoder(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    from mlx_vlm.encoder_loader import load_encoder_model
    from mlx_vlm.utils import load_config

    if any(folder.glob("*/*.safetensors")):
        # The loader would read them, and nobody has checked them.
        raise RpcError(
            ErrorKind.MODEL_LOAD_FAILED,
            "cannot load the model: there are weights in a folder within its folder, as of a layer behind its encoder, which "
            "this engine has not",
        )
    config: dict[str, Any] = load_config(folder)
    kind = config["model_type"]
    model = load_encoder_model(folder, model_remapping=ENCODERS, lazy=True)
    if kind == "xlm-roberta":
        # Its positions are counted from behind that of the padding.
        config["max_position_embeddings"] -= int(config["pad_token_id"]) + 1
    return model, {**config, "model_type": kind}
