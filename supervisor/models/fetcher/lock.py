"""One pull of a model at a time, across processes. Edge."""

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_POLL_S = 0.2


@contextmanager
def held(lock_file: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock; the kernel lets go of it however this process ends.

    While another has it, `on_wait` is called now and again, so that a waiter whose supervisor has died finds
    out.
    """
    with lock_file.open("ab") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                on_wait()
                time.sleep(_POLL_S)
        yield
