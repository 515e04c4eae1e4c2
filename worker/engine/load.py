"""Which engine computes a model."""

import json
from importlib.util import find_spec
from pathlib import Path

from mlx_lm.utils import MODEL_REMAPPING

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.self_test import SelfTestResult
from mlxsup.protocol.worker_link import Load
from mlxsup.worker.engine.embedding.encoder import ENCODERS, EncoderEngine
from mlxsup.worker.engine.embedding.engine import EmbeddingEngine
from mlxsup.worker.engine.interface import ReportLoad, TestsItself
from mlxsup.worker.engine.text import TextEngine
from mlxsup.worker.engine.vision.sight import KINDS


def load_engine(order: Load, report: ReportLoad) -> EmbeddingEngine:
    """Raises RpcError: MODEL_LOAD_FAILED with what is wrong with the folder, or with what the model computes."""
    engine = EmbeddingEngine.around(engine_for(order).load(order, report), order)
    if order.self_test:
        _self_test(engine, report)
    return engine


def engine_for(order: Load) -> type[TextEngine] | type[EncoderEngine]:
    """Raises RpcError: MODEL_LOAD_FAILED where this installation has none."""
    try:
        kind = str(json.loads((Path(order.model_path) / "config.json").read_text()).get("model_type"))
    except (OSError, ValueError, AttributeError):
        # The loader says what is wrong with it.
        return TextEngine
    if kind not in KINDS and kind not in ENCODERS:
        return TextEngine
    if find_spec("mlx_vlm") is None:
        if find_spec(f"mlx_lm.models.{MODEL_REMAPPING.get(kind, kind)}") is not None:
            # Of its text, without images.
            return TextEngine
        raise RpcError(
            ErrorKind.MODEL_LOAD_FAILED,
            f"cannot load the model: {kind} needs mlx-vlm, which is not installed; pip install 'mlxsup[vision]'",
        )
    if kind in ENCODERS:
        return EncoderEngine
    if order.kv_bits is not None:
        raise RpcError(
            ErrorKind.MODEL_LOAD_FAILED,
            "cannot load the model: `kv_bits` is not for models that see images; leave it out of its configuration",
        )
    from mlxsup.worker.engine.vision.engine import VisionEngine

    return VisionEngine


def _self_test(engine: TestsItself, report: ReportLoad) -> None:
    result: SelfTestResult | None = None
    while result is None:
        report("self-test", 0, 1)
        result = engine.step_self_test(lambda: False)
    report("self-test", 1, 1)
    failed = next((check.why for check in result.checks if check.outcome == "failed"), None)
    if failed is not None:
        raise RpcError(
            ErrorKind.MODEL_LOAD_FAILED,
            f"the model fails its self-test: {failed}; its weights are damaged, or mlx-lm computes it wrong: pull or convert "
            "it again, or upgrade mlx-lm",
        )
