"""Where a signal came from, as `native/src/signal_origin.c` says it on a worker's stderr. Pure."""

import re

import msgspec

_LINE = re.compile(r"mlxsup: signal (\d{1,3}) (?:raised here|sent by process (\d{1,10})) \(([0-9a-f]+)\)")


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Of the signal `number`: `sender_pid` is None when the worker raised it itself, and 0 when the sender cannot be seen
    from here, as from within a container. `sender_name` is None when the sender had ended before it could be asked for.
    """

    number: int
    sender_pid: int | None = None
    sender_name: str | None = None

    @property
    def from_outside(self) -> bool:
        return self.sender_pid is not None

    def __str__(self) -> str:
        if self.sender_pid is None:
            return "raised by itself"
        if self.sender_pid == 0:
            return "sent from outside its container"
        return f"sent by process {self.sender_pid} ({self.sender_name or 'which has ended'})"


def read_origin(line: str, key: str | None) -> Origin | None:
    """None for every other line. `key` is the worker's own: without it any text could pass for one.

    It is None before the worker has said it; nobody's text has come to it then.
    """
    match = _LINE.fullmatch(line)
    if match is None or (key is not None and match[3] != key):
        return None
    return Origin(number=int(match[1]), sender_pid=None if match[2] is None else int(match[2]))
