"""`python -P -m mlxsup.worker`: one worker, on the pipes that are its stdin and stdout."""

from mlxsup.protocol.descriptors import claim_pipes

_PIPES = claim_pipes()

from mlxsup.worker.process import run_worker  # noqa: E402  (nothing may be imported before the pipes are safe)


def main() -> None:
    from mlxsup.worker.engine.text import TextEngine

    run_worker(_PIPES, TextEngine.load)


if __name__ == "__main__":
    main()
