"""A worker that is real but for its engine, and that fails when told to.

    python -P scripts/faulty_worker [--ledger FILE] [--load FAULT] ...

as the supervisor's `worker.command`; `--help` lists the options. A request's prompt is a `Script` in JSON (see
`script.py`), and so is a FAULT; the request's text is `answers.faulty_text(seed, max_tokens)`, whatever happens in
between.
"""

import sys
from pathlib import Path

# The folder itself was put there; with the checkout's root, modules have the names that the type checker knows.
sys.path[0] = str(Path(__file__).resolve().parents[2])

from mlxsup.protocol.descriptors import claim_pipes  # noqa: E402

if __name__ == "__main__":
    _PIPES = claim_pipes()

    # Nothing that could print may be imported before the pipes are safe.
    from scripts.faulty_worker.worker import run

    run(_PIPES, sys.argv[1:])
