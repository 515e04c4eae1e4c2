"""One worker process: spawned, talked to, stopped, and always waited for.

Three tasks serve it: a writer, a reader, and one that drains stderr from spawn to the end, since a worker that
blocks on a full pipe can neither work nor stop. Whoever sends only appends to a buffer: a frame is never torn by
a cancelled sender.

The stop ladder, each rung with its own grace, climbed only while the process lives: `shutdown` and the end of its
input, which a worker obeys between two steps of its batch; SIGTERM and SIGCONT; SIGKILL to its process group. On a
Mac a hard kill can strand wired memory until a reboot, so it is last.
"""

import logging
import math
import signal
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import msgspec
import trio

from mlxsup.config.schema import Worker as WorkerConfig
from mlxsup.protocol import worker_link as link
from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.framing import Frame, LineDecoder
from mlxsup.protocol.jsonrpc import Response, encode_notification, encode_request, parse_message
from mlxsup.supervisor.pool.process import ChildProcess, process_name
from mlxsup.supervisor.pool.stderr_tail import StderrTail
from mlxsup.supervisor.recovery.oom_evidence import OomEvidence
from mlxsup.supervisor.recovery.signal_origin import Origin, read_origin

_log = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

_READ_BYTES = 256 * 1024
# A grandchild that inherited stderr can hold it open long after the worker's death.
_STDERR_GRACE_S = 0.25
# faulthandler writes the stacks of all threads from its signal handler.
_DUMP_S = 0.2
_CLOSED_GRACE_S = 2.0


class WorkerGoneError(Exception):
    """The worker ended, or broke the protocol, before it answered."""


class LinkFaultError(Exception):
    """The worker sent what is not the worker protocol."""


class Handlers(msgspec.Struct, frozen=True):
    """What is done, at once and without waiting, with what the worker says by itself."""

    step: Callable[[link.Step], None]
    answer: Callable[[int, link.Generated | RpcError], None]
    progress: Callable[[link.LoadProgress], None]
    heartbeat: Callable[[link.Heartbeat], None]


def _ignore(_: object) -> None:
    """A spare has nobody to tell."""


_NO_HANDLERS = Handlers(step=_ignore, answer=lambda *_: None, progress=_ignore, heartbeat=_ignore)


class Worker:
    """Made by the hatchery, which runs it. Whoever has it ends it with `stop`."""

    def __init__(self, process: ChildProcess, config: WorkerConfig) -> None:
        self._process = process
        self._config = config
        self._handlers = _NO_HANDLERS
        self._outgoing = bytearray()
        self._wake_writer = trio.Event()
        self._end_input = False
        self._calls: dict[int, Callable[[Response | None], None]] = {}
        self._last_call_id = 0
        self.hello: link.Hello | None = None
        self._hello_came = trio.Event()
        self.gone = trio.Event()
        # The order to load is answered, and the first step of a batch has come; or they never will.
        self.load_over = trio.Event()
        self.at_work = trio.Event()
        self.fault: str | None = None
        self.stderr = StderrTail(config.stderr_lines_max, config.stderr_line_bytes_max)
        self._died_s = math.inf
        self.origin: Origin | None = None
        self.killed_for_memory: bool | None = None
        self._oom = OomEvidence(process.oom_kills())
        self._decode_step = msgspec.json.Decoder(link.Step).decode
        self._serving = trio.CancelScope()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    @property
    def old_stderr_lines(self) -> int:
        """So many of the first lines of its stderr came too long before its end to say anything of it."""
        return self.stderr.count_before(self._died_s - self._config.last_words_s)

    def adopt(self, handlers: Handlers) -> None:
        """From now on what it says goes here."""
        self._handlers = handlers

    def send_request(self, id: int, method: str, params: Any) -> None:
        """The answer goes to `handlers.answer`. Ids are the caller's, above zero."""
        self._send(encode_request(id, method, params))

    def send_notification(self, method: str, params: Any) -> None:
        self._send(encode_notification(method, params))

    async def call(self, method: str, params: Any, result_type: type[ResultT]) -> ResultT:
        """Ask and wait for the answer.

        Raises:
            RpcError: the worker's own refusal.
            WorkerGoneError: it ended first.
        """
        answered = trio.Event()
        box: list[Response | None] = []

        def settle(response: Response | None) -> None:
            box.append(response)
            answered.set()

        # Negative, so that they never meet the ids of requests.
        self._last_call_id -= 1
        id = self._last_call_id
        if self.gone.is_set():
            raise WorkerGoneError
        self._calls[id] = settle
        try:
            self._send(encode_request(id, method, params))
            await answered.wait()
        finally:
            self._calls.pop(id, None)
            if method == link.LOAD:
                self.load_over.set()
        response = box[0]
        if response is None:
            raise WorkerGoneError
        if response.error is not None:
            raise RpcError.from_object(response.error)
        try:
            return msgspec.json.decode(response.result or b"null", type=result_type)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            await self._break(f"{type(error).__name__} in its answer to {method}")
            raise WorkerGoneError from error

    async def wait_hello(self) -> link.Hello:
        """Raises WorkerGoneError if it ends before."""
        await self._hello_came.wait()
        if self.hello is None:
            raise WorkerGoneError
        return self.hello

    async def stop(self) -> None:
        """Climb the stop ladder until the process has ended and its pipes are read; shielded, bounded by the graces."""
        with trio.CancelScope(shield=True):
            await self._climb()
            await self.gone.wait()

    async def _climb(self) -> None:
        config = self._config
        if self.returncode is None:
            shutdown = link.Shutdown(grace_s=config.exit_grace_s + config.term_grace_s)
            self.send_notification(link.SHUTDOWN, shutdown)
            self._close_input()
            if await self._ended_within(config.exit_grace_s):
                return
            _log.warning("worker %d has not ended by itself: sending SIGTERM", self.pid)
            self._process.signal_group(signal.SIGTERM)
            self._process.signal_group(signal.SIGCONT)
            if await self._ended_within(config.term_grace_s):
                return
            await self.kill()

    async def end_stalled(self) -> None:
        """End a worker that gets nowhere: its stacks first, so that somebody can see why."""
        with trio.CancelScope(shield=True):
            # A stopped process dumps nothing before it goes on, and then it is told to end in the same moment.
            self._process.signal_group(signal.SIGUSR1)
            if not await self._ended_within(_DUMP_S):
                self._process.signal_group(signal.SIGTERM)
                self._process.signal_group(signal.SIGCONT)
                if not await self._ended_within(self._config.term_grace_s):
                    await self.kill()
            await self.gone.wait()

    async def kill(self) -> None:
        """The last rung: SIGKILL to the whole group."""
        with trio.CancelScope(shield=True):
            _log.warning("killing worker %d", self.pid)
            self._process.signal_group(signal.SIGKILL)
            if not await self._ended_within(self._config.kill_grace_s):
                _log.error(
                    "worker %d survives SIGKILL: the kernel holds it, and nobody waits for it", self.pid
                )
                self._serving.cancel()

    async def _ended_within(self, grace_s: float) -> bool:
        with trio.move_on_after(grace_s):
            await self._process.wait()
        return self._process.returncode is not None

    def _send(self, frame: bytes) -> None:
        """Raises RpcError LIMIT_EXCEEDED for what the worker would take for a broken protocol."""
        if len(frame) > link.FRAME_BYTES_MAX:
            raise RpcError(
                ErrorKind.LIMIT_EXCEEDED,
                "the request is too large to be handed to a worker; send less at once",
            )
        if self._end_input:
            return
        self._outgoing += frame
        self._outgoing += b"\n"
        self._wake_writer.set()

    def _close_input(self) -> None:
        self._end_input = True
        self._wake_writer.set()

    async def run(self) -> None:
        """Serve the pipes until the process has ended, whatever is cancelled around; then `gone` is set."""
        with trio.CancelScope(shield=True):
            await self._serve()

    async def _serve(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                self._serving = nursery.cancel_scope
                nursery.start_soon(self._write)
                nursery.start_soon(self._drain_stderr)
                nursery.start_soon(self._read)
                await self._process.wait()
                self._died_s = trio.current_time()
                self.killed_for_memory = self._oom.rose(self._process.oom_kills())
                # What it forked ends with it.
                self._process.signal_group(signal.SIGKILL)
                self._close_input()
                # What it wrote before its end is still in the pipes, which a grandchild may keep open.
                nursery.cancel_scope.deadline = trio.current_time() + _STDERR_GRACE_S
        finally:
            for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
                await trio.aclose_forcefully(stream)
            self._hello_came.set()
            self.gone.set()
            self.load_over.set()
            self.at_work.set()
            for settle in list(self._calls.values()):
                settle(None)

    async def _write(self) -> None:
        stdin = self._process.stdin
        try:
            while self._outgoing or not self._end_input:
                if not self._outgoing:
                    await self._wake_writer.wait()
                self._wake_writer = trio.Event()
                data, self._outgoing = self._outgoing, bytearray()
                if data:
                    await stdin.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await self._expect_end("it closed its input")
        finally:
            self._end_input = True
            await trio.aclose_forcefully(stdin)

    async def _read(self) -> None:
        stdout = self._process.stdout
        decoder = LineDecoder(link.FRAME_BYTES_MAX)
        try:
            while chunk := await stdout.receive_some(_READ_BYTES):
                for event in decoder.feed(bytes(chunk)):
                    if not isinstance(event, Frame):
                        raise LinkFaultError("a frame over the limit")
                    self._take(event.data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except LinkFaultError as fault:
            await self._break(str(fault))
            return
        await self._expect_end("it closed its output")

    async def _expect_end(self, what: str) -> None:
        """It should be ending, and its exit status says why; if it lives on, nobody can talk to it."""
        if not await self._ended_within(_CLOSED_GRACE_S):
            await self._break(f"{what} and lives on")

    async def _break(self, fault: str) -> None:
        """Nothing that it says from now on can be trusted."""
        self.fault = fault
        _log.error("worker %d broke the protocol: %s", self.pid, fault)
        await self.kill()

    def _take(self, frame: bytes) -> None:
        """Read it, and only then act on it: what goes wrong there is no fault of the worker's."""
        try:
            act = self._read_frame(frame)
        except ValueError as error:
            # Its text may quote what the frame says.
            raise LinkFaultError(f"{type(error).__name__} in a frame of {len(frame)} bytes") from None
        act()

    def _read_frame(self, frame: bytes) -> Callable[[], None]:
        message = parse_message(frame)
        if isinstance(message, Response):
            return self._read_response(message)
        params = message.params or b"{}"
        match message.method:
            case link.STEP:
                self.at_work.set()
                return partial(self._handlers.step, self._decode_step(params))
            case link.HEARTBEAT:
                return partial(self._feel_beat, msgspec.json.decode(params, type=link.Heartbeat))
            case link.PROGRESS:
                return partial(self._handlers.progress, msgspec.json.decode(params, type=link.LoadProgress))
            case link.HELLO:
                return partial(self._greet, msgspec.json.decode(params, type=link.Hello))
        raise LinkFaultError("an unknown method")

    def _read_response(self, response: Response) -> Callable[[], None]:
        if not isinstance(response.id, int):
            raise LinkFaultError("an answer without an id of ours")
        if response.id > 0:
            return partial(self._handlers.answer, response.id, _read_answer(response))
        settle = self._calls.pop(response.id, None)
        return (lambda: None) if settle is None else partial(settle, response)

    def _feel_beat(self, beat: link.Heartbeat) -> None:
        self._oom.note_alive(self._process.oom_kills())
        self._handlers.heartbeat(beat)

    def _greet(self, hello: link.Hello) -> None:
        self.hello = hello
        self._hello_came.set()

    async def _drain_stderr(self) -> None:
        stderr = self._process.stderr
        try:
            while chunk := await stderr.receive_some(_READ_BYTES):
                for line in self.stderr.feed(bytes(chunk), trio.current_time()):
                    _log.debug("worker %d: %s", self.pid, line)
                    self._look_for_origin(line)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.stderr.finish()

    def _look_for_origin(self, line: str) -> None:
        """At once: the line may not stay among the last, nor the sender stay alive."""
        origin = read_origin(line, None if self.hello is None else self.hello.signal_key)
        if origin is not None:
            name = process_name(origin.sender_pid) if origin.sender_pid else None
            self.origin = msgspec.structs.replace(origin, sender_name=name)


def _read_answer(response: Response) -> link.Generated | RpcError:
    if response.error is not None:
        return RpcError.from_object(response.error)
    return msgspec.json.decode(response.result or b"", type=link.Generated)
