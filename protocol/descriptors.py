"""Takes the protocol's pipes away from descriptors 0 and 1, before any library can print to them.

Descriptor 1 becomes stderr and 0 becomes /dev/null: a library's print, a C `puts` or a child process can
then neither break the protocol nor eat its input. Standard library only, imported before all else.
"""

import fcntl
import os
from typing import NamedTuple


class Pipes(NamedTuple):
    """Private, close-on-exec descriptors of the protocol."""

    incoming: int
    outgoing: int


def claim_pipes() -> Pipes:
    # At least 3, so that neither copy can land on a standard descriptor that happens to be closed.
    incoming = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 3)
    outgoing = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 3)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return Pipes(incoming, outgoing)
