"""Which engine computes a model."""

from mlxsup.protocol.worker_link import Load
from mlxsup.worker.engine.embedding.engine import EmbeddingEngine
from mlxsup.worker.engine.interface import ReportLoad
from mlxsup.worker.engine.text import TextEngine


def load_engine(order: Load, report: ReportLoad) -> EmbeddingEngine:
    """Raises RpcError: MODEL_LOAD_FAILED with what is wrong with the folder."""
    return EmbeddingEngine.around(TextEngine.load(order, report), order)
