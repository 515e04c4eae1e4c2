"""Ends this process when its supervisor is gone."""

import ctypes
import os

from mlxsup.native.shared_objects import shared_object_path

_GRACE_MAX_MS = 2**31 - 1  # the width of a C int
_EXIT_CODE_MAX = 255


class OrphanWatch:
    """The watch of this process. It has no end: it lasts as long as the process."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._set_grace_ms = library.mlxsup_watch_set_grace_ms
        self._set_grace_ms.argtypes = [ctypes.c_int]
        self._set_grace_ms.restype = None

    def set_grace_ms(self, grace_ms: int) -> None:
        """Changes how long after the supervisor's end this process may still run.

        Counts from that end, also when it has come already: an orderly shutdown asks for more time while it runs.
        """
        _check_grace_ms(grace_ms)
        self._set_grace_ms(grace_ms)


def watch_orphan(fd: int, grace_ms: int, exit_code: int) -> OrphanWatch | None:
    """Ends this process `grace_ms` after the other end of `fd` was closed or the parent has died.

    Reads nothing from `fd`. None where the watch was not built; OSError where it could not start, as for a second
    watch in one process.
    """
    _check_grace_ms(grace_ms)
    if not 0 <= exit_code <= _EXIT_CODE_MAX:
        raise ValueError(f"cannot exit with {exit_code}: an exit code is 0 to {_EXIT_CODE_MAX}")
    path = shared_object_path("orphan_watch")
    if path is None:
        return None
    library = ctypes.CDLL(str(path))
    start = library.mlxsup_watch_start
    start.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int]
    start.restype = ctypes.c_int
    error = start(fd, grace_ms, exit_code)
    if error != 0:
        raise OSError(error, f"cannot watch descriptor {fd}: {os.strerror(error)}")
    return OrphanWatch(library)


def _check_grace_ms(grace_ms: int) -> None:
    if not 0 <= grace_ms <= _GRACE_MAX_MS:
        raise ValueError(f"cannot set a grace of {grace_ms} ms: it is 0 to {_GRACE_MAX_MS}")
