"""What each kind of fault does to the process that it strikes. Edge."""

import os
import select
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.worker_link import FRAME_BYTES_MAX
from scripts.faulty_worker import native_faults
from scripts.faulty_worker.ledger import Ledger
from scripts.faulty_worker.script import Fault, FaultKind

METAL_WORDS = (
    "[METAL] Command buffer execution failed: Caused GPU Hang Error "
    "(00000003:kIOGPUCommandBufferCallbackErrorHang)."
)
# Of a frame that began like any other.
_TORN = b'{"jsonrpc":"2.0","method":"step","params":{"deltas":[[1,"half a fr'
_GRANDCHILD_S = 120
_CHUNK_BYTES = 1 << 16


class Faults:
    """Of one worker. `outgoing` is its end of the protocol's pipe. Everything is called by the MLX thread."""

    def __init__(self, ledger: Ledger, outgoing: int) -> None:
        self._ledger = ledger
        self._outgoing = outgoing
        self._void: str | None = None
        self._leak_bytes = 0
        self._leaked: list[bytes] = []
        self._actions: dict[FaultKind, Callable[[Fault], None]] = {
            FaultKind.ABORT: lambda _: native_faults.abort(),
            FaultKind.SEGFAULT: lambda _: native_faults.read_null(),
            FaultKind.BUS_ERROR: lambda _: native_faults.read_truncated_map(),
            FaultKind.SIGNAL: lambda fault: os.kill(os.getpid(), fault.number),
            FaultKind.EXIT: lambda fault: os._exit(fault.number),
            FaultKind.DEFECT: _fail,
            FaultKind.POISONED_CONTEXT: self._poison,
            FaultKind.HANG: lambda _: native_faults.deadlock(hold_gil=False),
            FaultKind.HANG_WITH_GIL: lambda _: native_faults.deadlock(hold_gil=True),
            FaultKind.SPIN: lambda _: native_faults.spin(hold_gil=False),
            FaultKind.SPIN_WITH_GIL: lambda _: native_faults.spin(hold_gil=True),
            FaultKind.STOP: lambda _: os.kill(os.getpid(), signal.SIGSTOP),
            FaultKind.GARBAGE: lambda _: self._write(b'{"jsonrpc": half a thought\n'),
            FaultKind.TORN_FRAME_THEN_DEATH: self._tear_and_die,
            FaultKind.TORN_FRAME_THEN_SILENCE: self._tear_and_hang,
            FaultKind.HUGE_FRAME: self._write_huge,
            FaultKind.BAD_WEIGHTS: _refuse_load,
            FaultKind.SLOW: lambda _: None,
            FaultKind.LEAK: self._begin_leak,
            FaultKind.GRANDCHILD: self._fork,
            FaultKind.IGNORE_TERM: lambda _: _ignore_term(),
            FaultKind.STDERR_FLOOD: _flood_stderr,
        }

    def check(self, fault: Fault) -> None:
        """Raises RpcError INVALID_PARAMS for one that could not be counted."""
        try:
            self._ledger.allows(fault)
        except ValueError as error:
            raise RpcError(ErrorKind.INVALID_PARAMS, str(error), path="$.prompt") from None

    def strike(self, fault: Fault) -> bool:
        """Do it, if it may be done once more, and say so where that can still be said."""
        if not self._ledger.allows(fault):
            return False
        if fault.words:
            print(fault.words, file=sys.stderr, flush=True)
        if fault.kind is not FaultKind.GRANDCHILD:
            self._ledger.note(fault)
        self._actions[fault.kind](fault)
        return True

    def take_part(self, tokens: int) -> None:
        """To be called in each step: what has struck has consequences."""
        if self._void is not None:
            raise RuntimeError(self._void)
        if self._leak_bytes and tokens:
            # Every page is written to, or the system would not give it.
            self._leaked.append(b"\1" * (self._leak_bytes * tokens))

    def _poison(self, fault: Fault) -> None:
        self._void = fault.words or METAL_WORDS

    def _begin_leak(self, fault: Fault) -> None:
        self._leak_bytes = fault.number

    def _tear_and_die(self, _: Fault) -> None:
        self._write(_TORN)
        os.kill(os.getpid(), signal.SIGKILL)

    def _tear_and_hang(self, _: Fault) -> None:
        self._write(_TORN)
        native_faults.deadlock(hold_gil=True)

    def _write_huge(self, _fault: Fault) -> None:
        chunk = b"x" * _CHUNK_BYTES
        for _ in range(FRAME_BYTES_MAX // _CHUNK_BYTES + 1):
            self._write(chunk)
        self._write(b"\n")

    def _write(self, data: bytes) -> None:
        """Past the outbox, whose pipe does not block."""
        poll = select.poll()
        poll.register(self._outgoing, select.POLLOUT)
        while data:
            poll.poll()
            try:
                data = data[os.write(self._outgoing, data) :]
            except BlockingIOError:
                continue

    def _fork(self, fault: Fault) -> None:
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            # Nobody is left behind for ever, whatever becomes of the test.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(_GRANDCHILD_S)
            while True:
                signal.pause()
        self._ledger.note(fault, grandchild=pid)


def _fail(fault: Fault) -> NoReturn:
    raise RuntimeError(fault.words or "nothing expects this")


def _refuse_load(fault: Fault) -> NoReturn:
    raise RpcError(
        ErrorKind.MODEL_LOAD_FAILED, fault.words or "the weights are damaged; pull or convert the model again"
    )


def _ignore_term() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _flood_stderr(fault: Fault) -> None:
    line = b"flood " * 20 + b"\n"
    written = 0
    while written < fault.number:
        written += os.write(2, line)
