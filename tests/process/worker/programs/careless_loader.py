"""A worker whose loader takes every exception for a fault of the model, as libraries do."""

from mlxsup.protocol.descriptors import claim_pipes

_PIPES = claim_pipes()

import time  # noqa: E402

from mlxsup.protocol.errors import ErrorKind, RpcError  # noqa: E402
from mlxsup.protocol.worker_link import Load  # noqa: E402
from mlxsup.worker.engine.interface import Engine, ReportLoad  # noqa: E402
from mlxsup.worker.process import run_worker  # noqa: E402

_LONG_S = 3600


def load(_: Load, report: ReportLoad) -> Engine:
    try:
        report("tokenizer", 0, 1)
        time.sleep(_LONG_S)
    except Exception as error:
        raise RpcError(ErrorKind.MODEL_LOAD_FAILED, "its tokenizer can't be read") from error
    raise AssertionError("a load of an hour is over")


run_worker(_PIPES, lambda: load)
