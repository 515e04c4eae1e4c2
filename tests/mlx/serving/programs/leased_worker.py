"""The real worker, which writes each turn that it is granted into the file that is its argument: its pid, a line."""

from mlxsup.protocol.descriptors import claim_pipes

_PIPES = claim_pipes()

import os  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

from mlxsup.worker.__main__ import import_engine  # noqa: E402
from mlxsup.worker.lease import Lease  # noqa: E402
from mlxsup.worker.process import run_worker  # noqa: E402

_grant = Lease.grant


def _grant_and_tell(lease: Lease) -> None:
    with Path(sys.argv[1]).open("a", encoding="ascii") as file:
        file.write(f"{os.getpid()}\n")
    _grant(lease)


Lease.grant = _grant_and_tell  # type: ignore[assignment,method-assign]
run_worker(_PIPES, import_engine)
