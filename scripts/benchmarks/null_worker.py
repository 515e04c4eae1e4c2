"""A worker that is real but for its engine; the supervisor's `worker.command` names it."""

from typing import NoReturn

from mlxsup.protocol.descriptors import claim_pipes


def run() -> NoReturn:
    pipes = claim_pipes()

    # Nothing that could print may be imported before the pipes are safe.
    from mlxsup.worker.process import run_worker
    from scripts.benchmarks.null_engine import load_null_engine

    run_worker(pipes, lambda: load_null_engine)
