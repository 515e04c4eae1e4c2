"""Faults of native code, made with nothing but the C library. None of these functions returns."""

import ctypes
import mmap
import tempfile
from typing import NoReturn

# More than a pthread_mutex_t has on any platform.
_MUTEX_BYTES = 256


def c_library(*, hold_gil: bool) -> ctypes.CDLL:
    """With `hold_gil` its functions run as those of an extension that forgets to release the interpreter lock."""
    return ctypes.PyDLL(None) if hold_gil else ctypes.CDLL(None)


def abort() -> NoReturn:
    c_library(hold_gil=True).abort()
    raise AssertionError("abort has returned")


def read_null() -> NoReturn:
    ctypes.string_at(0)
    raise AssertionError("the null page is mapped")


def read_truncated_map() -> NoReturn:
    """SIGBUS, as for weights that somebody cuts off while they are mapped."""
    with tempfile.TemporaryFile() as file:
        file.truncate(mmap.PAGESIZE)
        # Behind the back of mmap, which checks the file's size when its own bytes are read.
        page = (ctypes.c_char * mmap.PAGESIZE).from_buffer(mmap.mmap(file.fileno(), mmap.PAGESIZE))
        file.truncate(0)
        raise AssertionError(f"what was cut off can still be read: {page[0]!r}")


def deadlock(*, hold_gil: bool) -> NoReturn:
    """Wait for a lock that one has: unlike a sleep, no signal interrupts that."""
    library = c_library(hold_gil=hold_gil)
    mutex = ctypes.create_string_buffer(_MUTEX_BYTES)
    library.pthread_mutex_init(mutex, None)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)
    raise AssertionError("a default mutex was locked twice")


def spin(*, hold_gil: bool) -> NoReturn:
    """Compare two texts as often as a size_t can count."""
    library = c_library(hold_gil=hold_gil)
    count = ctypes.c_size_t(2**63)
    compare = ctypes.cast(library.strcmp, ctypes.c_void_p)
    # Elements of width 0: the search goes on for ever at the same place.
    library.lfind(b"a", b"b", ctypes.byref(count), ctypes.c_size_t(0), compare)
    raise AssertionError("a text was found in another one")
