"""What a person presses, from the bytes that a terminal sends for it. Pure."""

import re
from collections.abc import Iterator
from enum import Enum, auto


class Key(Enum):
    QUIT = auto()
    SORT = auto()
    UP = auto()
    DOWN = auto()
    PAGE_UP = auto()
    PAGE_DOWN = auto()


_KEYS = {
    b"q": Key.QUIT,
    b"Q": Key.QUIT,
    b"s": Key.SORT,
    b"k": Key.UP,
    b"j": Key.DOWN,
    b"\x1b[A": Key.UP,
    b"\x1bOA": Key.UP,
    b"\x1b[B": Key.DOWN,
    b"\x1bOB": Key.DOWN,
    b"\x1b[5~": Key.PAGE_UP,
    b"\x1b[6~": Key.PAGE_DOWN,
}
# A control sequence of ECMA-48, which is one key however many letters are in it; or a single byte.
_PRESSED = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]|\x1bO.|.", re.DOTALL)


def read_keys(data: bytes) -> Iterator[Key]:
    """Those that mean something, in their order."""
    for pressed in _PRESSED.findall(data):
        key = _KEYS.get(pressed)
        if key is not None:
            yield key
