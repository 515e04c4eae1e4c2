"""The faulty worker's life: the real one's, around another engine."""

import sys
import time
from types import ModuleType
from typing import NoReturn

from mlxsup.protocol.descriptors import Pipes
from mlxsup.protocol.worker_link import Load
from mlxsup.worker.engine.interface import LoadEngine, ReportLoad
from mlxsup.worker.process import run_worker
from scripts.faulty_worker.engine import FaultyEngine
from scripts.faulty_worker.script import Fault


def run(pipes: Pipes, _arguments: list[str]) -> NoReturn:
    def strike(fault: Fault) -> None:
        raise NotImplementedError(fault.kind)

    def load(order: Load, report: ReportLoad) -> FaultyEngine:
        began_s = time.monotonic()
        report("weights", 1, 1)
        report("warm", 1, 1)
        return FaultyEngine(strike, order.prefill_chunk_tokens, time.monotonic() - began_s)

    def import_engine() -> LoadEngine:
        # The worker only takes one function out of it, and its import takes longer than all else here.
        generate = ModuleType("mlx_lm.generate")
        generate.maybe_set_recommended_wired_limit = lambda: None  # type: ignore[attr-defined]
        sys.modules.setdefault("mlx_lm.generate", generate)
        return load

    run_worker(pipes, import_engine)
