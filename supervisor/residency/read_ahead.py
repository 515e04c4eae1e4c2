"""Reads files into the system's cache, so that whoever loads them soon need not wait for a disk. Edge.

It is advice: where it can't be followed nothing is lost, and memory that somebody needs is taken from the cache again.
"""

import fcntl
import os
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

# From <fcntl.h> of macOS, which Python's module does not have.
_F_RDADVISE = 44
# Of a longer piece Linux reads only the beginning: as much as its device takes at once.
_CHUNK_BYTES = 128 * 1024


def read_ahead(files: Iterable[Path], bytes_max: int) -> int:
    """Ask for the files one after the other, so many bytes in all; how many were asked for. Blocks on the disk."""
    asked = 0
    for path in files:
        if asked >= bytes_max:
            break
        try:
            asked += _advise(path, bytes_max - asked)
        except OSError:
            # Whoever loads it finds out what is wrong with it.
            continue
    return asked


def _advise(path: Path, bytes_max: int) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = min(os.fstat(descriptor).st_size, bytes_max)
        for offset in range(0, size, _CHUNK_BYTES):
            length = min(_CHUNK_BYTES, size - offset)
            if sys.platform == "darwin":
                fcntl.fcntl(descriptor, _F_RDADVISE, struct.pack("qi4x", offset, length))
            else:
                os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_WILLNEED)
        return size
    finally:
        os.close(descriptor)
