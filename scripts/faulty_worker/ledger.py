"""Which faults have struck, in all workers of a test together: a file of one JSON text a line. Edge."""

import os
import time
from pathlib import Path

import msgspec

from scripts.faulty_worker.script import Fault, FaultKind


class Strike(msgspec.Struct, frozen=True, kw_only=True):
    """`at_s` is the monotonic clock's, which all processes of a machine share. `grandchild` is its pid."""

    name: str
    kind: FaultKind
    pid: int
    at_s: float
    grandchild: int | None = None


class Ledger:
    def __init__(self, path: Path | None) -> None:
        self._path = path

    def allows(self, fault: Fault) -> bool:
        """Whether it may strike once more."""
        return fault.times is None or sum(strike.name == fault.name for strike in self.read()) < fault.times

    def note(self, fault: Fault, grandchild: int | None = None) -> None:
        """To be called before the strike, which leaves no time for it."""
        if self._path is None:
            return
        strike = Strike(
            name=fault.name, kind=fault.kind, pid=os.getpid(), at_s=time.monotonic(), grandchild=grandchild
        )
        # One write to a file that is only appended to: workers do not tear each other's lines.
        with self._path.open("ab", buffering=0) as file:
            file.write(msgspec.json.encode(strike) + b"\n")

    def read(self) -> list[Strike]:
        if self._path is None:
            raise ValueError("`times` needs a ledger on the worker's command line")
        try:
            lines = self._path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        return [msgspec.json.decode(line, type=Strike) for line in lines]
