"""Runs the fetcher and tells how it gets on. Task.

However a pull ends, by itself, by an error or by cancellation, the fetcher and whatever it has started are
gone: it leads a session of its own, which gets SIGTERM, a grace, and SIGKILL. A killed fetcher loses nothing.
"""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE

import msgspec
import trio

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.framing import Frame, LineDecoder
from mlxsup.supervisor.models.aliases import ALIASES
from mlxsup.supervisor.models.fetcher.messages import LINE_BYTES_MAX, Done, Failed, Message, Progress
from mlxsup.supervisor.models.names import parse_pullable
from mlxsup.supervisor.models.store import Pulled, Store

FETCHER = (sys.executable, "-P", "-m", "mlxsup.supervisor.models.fetcher")

_STDERR_BYTES_MAX = 16 * 1024
_GRACE_S = 2.0

OnProgress = Callable[[Progress], None]

_message = msgspec.json.Decoder(Message)


async def pull(
    name: str,
    *,
    store_root: Path,
    on_progress: OnProgress,
    fetcher: Sequence[str] = FETCHER,
    grace_s: float = _GRACE_S,
) -> Pulled:
    """Pull the alias or hub id `name`, unless it is in the store already: then nothing is started.

    Cancelling it is safe at any time; the next pull goes on with what has been downloaded.

    Args:
        name: as `names.parse_pullable` takes it.
        store_root: the model cache.
        on_progress: is called in this task's thread, up to ten times a second; it must not raise.
        fetcher: the program and its first arguments; the store's root and the name follow.
        grace_s: what a cancelled fetcher is given between SIGTERM and SIGKILL.

    Raises:
        RpcError: INVALID_PARAMS for a name that can't be one, MODEL_NOT_FOUND, MODEL_LOAD_FAILED,
            LIMIT_EXCEEDED as the fetcher says; INTERNAL, with the end of its stderr as a note, if it dies
            without saying anything.
    """
    wanted, store = parse_pullable(name, aliases=ALIASES), Store(store_root)
    if (found := await trio.to_thread.run_sync(store.find, wanted)) is not None:
        return found
    end, stderr, status = await _run([*fetcher, str(store.root), name], on_progress, grace_s)
    if isinstance(end, Failed):
        raise end.to_error()
    pulled = await trio.to_thread.run_sync(store.find, wanted)
    if isinstance(end, Done) and pulled is not None and pulled.digest == end.digest:
        return pulled
    # Its stderr may name paths of this host: it is for the log, not for a client.
    error = RpcError(
        ErrorKind.INTERNAL, f"cannot pull the model: the fetcher {_ending(status)} without a result"
    )
    error.add_note(stderr)
    raise error


class _Output:
    """What the fetcher has written."""

    def __init__(self, on_progress: OnProgress) -> None:
        self.end: Done | Failed | None = None
        self.stderr = bytearray()
        self._on_progress = on_progress

    async def read_messages(self, stream: trio.abc.ReceiveStream) -> None:
        """Reads to the end of the stream, whatever comes: a fetcher that nobody reads would stand still."""
        lines = LineDecoder(LINE_BYTES_MAX)
        async for chunk in stream:
            for event in lines.feed(bytes(chunk)):
                if isinstance(event, Frame) and self.end is None:
                    self._take(event.data)

    async def read_stderr(self, stream: trio.abc.ReceiveStream) -> None:
        async for chunk in stream:
            self.stderr += chunk
            del self.stderr[:-_STDERR_BYTES_MAX]

    def _take(self, line: bytes) -> None:
        try:
            message = _message.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        if isinstance(message, Progress):
            self._on_progress(message)
        else:
            self.end = message


async def _run(
    command: Sequence[str], on_progress: OnProgress, grace_s: float
) -> tuple[Done | Failed | None, str, int]:
    output = _Output(on_progress)
    process = await trio.lowlevel.open_process(
        list(command), stdin=PIPE, stdout=PIPE, stderr=PIPE, start_new_session=True
    )
    # No await between the start and this `try`: a cancellation there would leave the fetcher behind.
    try:
        # Never written to: its end tells the fetcher that we are gone, however that came.
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        async with process.stdin, process.stdout, process.stderr, trio.open_nursery() as nursery:
            nursery.start_soon(output.read_messages, process.stdout)
            nursery.start_soon(output.read_stderr, process.stderr)
            status = await process.wait()
            # A child of its own that outlived it would hold the pipes open.
            _signal_group(process, signal.SIGKILL)
    finally:
        with trio.CancelScope(shield=True):
            await _end(process, grace_s)
    return output.end, output.stderr.decode(errors="replace"), status


async def _end(process: trio.Process, grace_s: float) -> None:
    if process.returncode is None:
        _signal_group(process, signal.SIGTERM)
        with trio.move_on_after(grace_s):
            await process.wait()
    _signal_group(process, signal.SIGKILL)
    await process.wait()


def _signal_group(process: trio.Process, number: signal.Signals) -> None:
    # The leader's pid names the group for as long as any process of it lives; macOS says EPERM of a group of
    # zombies.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _ending(status: int) -> str:
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
