"""Has this process say on stderr where a signal came from that ends it."""

import ctypes
import faulthandler
import os
import re

from mlxsup.native.shared_objects import shared_object_path

_KEY = re.compile(r"[0-9a-f]{1,32}")


def report_signal_origin(key: str) -> bool:
    """From now on a line says of a signal whether it was raised here or who sent it, also while native code holds the GIL.

    `key`, lower-case hexadecimal, stands in each line, so that no other text passes for one. The handlers that are there
    are called as before, so it comes after `faulthandler.enable()` and `signal.signal()`: what is installed later takes
    its place. False where it was not built.

    Raises:
        RuntimeError: faulthandler is not enabled, whose alternate stack a handler needs after a stack overflow.
        OSError: it is there already.
    """
    if _KEY.fullmatch(key) is None:
        raise ValueError(f"cannot use {key!r} as a key: it is 1 to 32 lower-case hexadecimal digits")
    if not faulthandler.is_enabled():
        raise RuntimeError("cannot report where signals come from: faulthandler has to be enabled before")
    path = shared_object_path("signal_origin")
    if path is None:
        return False
    start = ctypes.CDLL(str(path)).mlxsup_signal_origin_start
    start.argtypes = [ctypes.c_char_p]
    start.restype = ctypes.c_int
    error = start(key.encode())
    if error != 0:
        raise OSError(error, f"cannot report where signals come from: {os.strerror(error)}")
    return True
