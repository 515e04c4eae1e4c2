"""`python -P -m mlxsup.worker`: one worker, on the pipes that are its stdin and stdout."""

from mlxsup.protocol.descriptors import claim_pipes

_PIPES = claim_pipes()

from mlxsup.worker.engine.interface import LoadEngine  # noqa: E402  (nothing is imported before the pipes are safe)
from mlxsup.worker.process import run_worker  # noqa: E402


def import_engine() -> LoadEngine:
    from mlxsup.worker.engine.load import load_engine

    return load_engine


if __name__ == "__main__":
    run_worker(_PIPES, import_engine)
