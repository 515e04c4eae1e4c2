"""Which engine computes a model."""

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.self_test import SelfTestResult
from mlxsup.protocol.worker_link import Load
from mlxsup.worker.engine.embedding.engine import EmbeddingEngine
from mlxsup.worker.engine.interface import ReportLoad, TestsItself
from mlxsup.worker.engine.text import TextEngine


def load_engine(order: Load, report: ReportLoad) -> EmbeddingEngine:
    """Raises RpcError: MODEL_LOAD_FAILED with what is wrong with the folder, or with what the model computes."""
    engine = EmbeddingEngine.around(TextEngine.load(order, report), order)
    if order.self_test:
        _self_test(engine, report)
    return engine


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
