"""The way out: frames to the supervisor, without the MLX thread ever waiting for the pipe.

A frame goes straight into the pipe while it has room, since handing it to another thread would cost it a
turn of the interpreter lock. Once the pipe is full, a writer thread takes over, and what comes meanwhile is
merged: one delta for each sequence, however many steps it missed. What is held is therefore bounded by the
text of the sequences in flight.
"""

import os
import select
import threading
from collections.abc import Sequence

from mlxsup.protocol.generation import TokenLogprob, ToolCall
from mlxsup.protocol.jsonrpc import encode_notification
from mlxsup.protocol.worker_link import STEP, Delta, Step


class _Gain:
    """What one sequence has gained since its last delta left."""

    __slots__ = ("logprobs", "reasoning", "texts", "tokens", "tool_calls")

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.tokens: list[int] = []
        self.reasoning: list[str] = []
        self.tool_calls: list[ToolCall] = []
        self.logprobs: list[TokenLogprob] = []

    def add(self, delta: Delta) -> None:
        self.texts.append(delta.text)
        self.tokens += delta.tokens
        self.reasoning.append(delta.reasoning)
        self.tool_calls += delta.tool_calls
        self.logprobs += delta.logprobs

    def delta(self, id: int) -> Delta:
        text, reasoning = "".join(self.texts), "".join(self.reasoning)
        return Delta(id, text, self.tokens, reasoning, self.tool_calls, self.logprobs)


class Outbox:
    """Any thread may send; of one sequence, deltas leave before the answer that follows them."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._deltas: dict[int, _Gain] = {}
        self._frames: list[bytes] = []
        self._heartbeat = b""
        self._torn = b""
        self._full = False
        self._wake_writer = threading.Event()
        self._broken = False
        self._drained = threading.Condition(self._lock)
        threading.Thread(target=self._write_when_full, name="writer", daemon=True).start()

    def send(self, frame: bytes) -> None:
        self.send_step((), (frame,))

    def send_step(self, deltas: Sequence[Delta], frames: Sequence[bytes] = ()) -> None:
        """Deltas of one step, and after them the answers of the sequences that it ended."""
        with self._lock:
            self._frames.extend(frames)
            if self._full:
                for delta in deltas:
                    self._merge(delta)
            else:
                self._pump(deltas)

    def send_heartbeat(self, frame: bytes) -> None:
        """A report that replaces the one before, if that has not left yet."""
        with self._lock:
            self._heartbeat = frame
            if not self._full:
                self._pump()

    def drain(self, timeout_s: float) -> bool:
        """Wait until all that was sent is in the pipe; False when it takes too long or nobody reads."""
        with self._lock:
            return (
                self._drained.wait_for(lambda: not self._full or self._broken, timeout_s) and not self._broken
            )

    def _merge(self, delta: Delta) -> None:
        gain = self._deltas.get(delta.id)
        if gain is None:
            gain = self._deltas[delta.id] = _Gain()
        gain.add(delta)

    def _pump(self, deltas: Sequence[Delta] = ()) -> None:
        """Write what the pipe takes; `_full` says afterwards whether something is left. With `deltas` nothing waited."""
        if self._broken:
            self._deltas.clear()
            self._frames.clear()
            self._heartbeat = b""
            return
        data = self._torn
        if deltas or self._deltas or self._frames or self._heartbeat:
            data += self._encode(deltas)
        try:
            written = os.write(self._descriptor, data) if data else 0
        except BlockingIOError:
            written = 0
        except OSError:
            # The supervisor is gone; the reader thread ends the process.
            self._broken = True
            written = len(data)
        self._torn = data[written:]
        self._full = bool(self._torn)
        if self._full:
            self._wake_writer.set()
        else:
            self._drained.notify_all()

    def _encode(self, deltas: Sequence[Delta]) -> bytes:
        lines = self._frames
        if self._deltas:
            deltas = [gain.delta(id) for id, gain in self._deltas.items()]
            self._deltas.clear()
        if deltas:
            lines = [encode_notification(STEP, Step(deltas=list(deltas))), *lines]
        if self._heartbeat:
            lines.append(self._heartbeat)
            self._heartbeat = b""
        data = b"\n".join(lines) + b"\n"
        self._frames = []
        return data

    def _write_when_full(self) -> None:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        while True:
            self._wake_writer.wait()
            poll.poll()
            with self._lock:
                self._pump()
                if not self._full:
                    self._wake_writer.clear()
