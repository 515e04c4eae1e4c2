"""One worker process: spawned, talked to, stopped, and always waited for.

Three tasks serve it: a writer, a reader, and one that drains stderr from spawn to the end, since a worker that
blocks on a full pipe can neither work nor stop.
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
from mlxsup.protocol.errors import RpcError
from mlxsup.protocol.jsonrpc import Response, encode_notification, encode_request, parse_message
from mlxsup.supervisor.pool.frame_pipes import (
    PIPE_CLOSED,
    READ_BYTES,
    FrameWriter,
    LinkFaultError,
    read_frames,
)
from mlxsup.supervisor.pool.process import ChildProcess, process_name
from mlxsup.supervisor.pool.stderr_tail import StderrTail
from mlxsup.supervisor.pool.stop_ladder import StopLadder
from mlxsup.supervisor.recovery.oom_evidence import OomEvidence
from mlxsup.supervisor.recovery.signal_origin import Origin, read_origin

_log = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

# A grandchild that inherited stderr can hold it open long after the worker's death.
_STDERR_GRACE_S = 0.25
_CLOSED_GRACE_S = 2.0


class WorkerGoneError(Exception):
    """The worker ended, or broke the protocol, before it answered."""


def _ignore(*_: object) -> None:
    """A spare has nobody to tell."""


class Handlers(msgspec.Struct, frozen=True):
    """What is done, at once and without waiting, with what the worker says by itself.

    They raise LinkFaultError for what it should not have said.
    """

    step: Callable[[link.Step], None]
    answer: Callable[[int, link.Generated | RpcError], None]
    progress: Callable[[link.LoadProgress], None]
    heartbeat: Callable[[link.Heartbeat], None]
    lease_ask: Callable[[link.LeaseAsk], None] = _ignore
    lease_done: Callable[[], None] = _ignore


_NO_HANDLERS = Handlers(step=_ignore, answer=_ignore, progress=_ignore, heartbeat=_ignore)


class Worker:
    """Made by the hatchery, which runs it. Whoever has it ends it with `stop`."""

    def __init__(self, process: ChildProcess, config: WorkerConfig) -> None:
        self._process = process
        self._config = config
        self._handlers = _NO_HANDLERS
        self._writer = FrameWriter(process.stdin)
        self._serving = trio.CancelScope()
        self._ladder = StopLadder(process, config, self._stop_serving)
        # Until the answer comes, also when nobody waits for it any more.
        self._calls: dict[int, Callable[[Response | None], None]] = {}
        self._last_call_id = 0
        self.hello: link.Hello | None = None
        self._hello_came = trio.Event()
        # It is dead, or stuck, or nothing that it says can be believed any more; it may take a while until it is gone.
        self.failing = trio.Event()
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

    @property
    def questions(self) -> int:
        """So many calls it has not answered, or had not at its end."""
        return len(self._calls)

    def adopt(self, handlers: Handlers) -> None:
        """From now on what it says goes here."""
        self._handlers = handlers

    def send_request(self, id: int, method: str, params: Any) -> None:
        """The answer goes to `handlers.answer`. Ids are the caller's, above zero."""
        self._writer.put(encode_request(id, method, params))

    def send_notification(self, method: str, params: Any) -> None:
        self._writer.put(encode_notification(method, params))

    def tune(
        self, *, batch_sequences_max: int | None = None, prefill_chunk_tokens: int | None = None
    ) -> None:
        """From its next step on; what is None stays as it is."""
        order = link.Tune(batch_sequences_max=batch_sequences_max, prefill_chunk_tokens=prefill_chunk_tokens)
        self.send_notification(link.TUNE, order)

    async def call(
        self,
        method: str,
        params: Any,
        result_type: type[ResultT],
        *,
        on_sent: Callable[[], None] = lambda: None,
        on_answer: Callable[[], None] = lambda: None,
    ) -> ResultT:
        """Ask and wait for the answer. `on_sent` is called once it is asked, and `on_answer` when the answer comes, also
        when nobody waits for it any more.

        Raises:
            RpcError: the worker's own refusal.
            WorkerGoneError: it ended first.
        """
        answered = trio.Event()
        box: list[Response | None] = []

        def settle(response: Response | None) -> None:
            box.append(response)
            answered.set()
            if response is not None:
                on_answer()

        # Negative, so that they never meet the ids of requests.
        self._last_call_id -= 1
        id = self._last_call_id
        if self.gone.is_set():
            raise WorkerGoneError
        try:
            self._writer.put(encode_request(id, method, params))
            self._calls[id] = settle
            on_sent()
            await answered.wait()
        finally:
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
            # One that is failing ends, or is ended, by what it did itself; told to end, its exit status would hide that.
            if not self.failing.is_set():
                await self._ladder.climb(self._tell_to_end)
            await self.gone.wait()

    def _tell_to_end(self) -> None:
        grace_s = self._config.exit_grace_s + self._config.term_grace_s
        self.send_notification(link.SHUTDOWN, link.Shutdown(grace_s=grace_s))
        self._writer.close()

    async def end_stalled(self) -> None:
        """End a worker that gets nowhere: its stacks first, so that somebody can see why; shielded as `stop`."""
        self.failing.set()
        with trio.CancelScope(shield=True):
            await self._ladder.end_stalled()
            await self.gone.wait()

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
                self.failing.set()
                self._died_s = trio.current_time()
                self.killed_for_memory = self._oom.rose(self._process.oom_kills())
                # What it forked ends with it.
                self._process.signal_group(signal.SIGKILL)
                self._writer.close()
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

    def _stop_serving(self) -> None:
        self._serving.cancel()

    async def _write(self) -> None:
        try:
            await self._writer.run()
        except PIPE_CLOSED:
            await self._expect_end("it closed its input")

    async def _read(self) -> None:
        try:
            await read_frames(self._process.stdout, self._take)
        except LinkFaultError as fault:
            await self._break(str(fault))
            return
        await self._expect_end("it closed its output")

    async def _expect_end(self, what: str) -> None:
        """It should be ending, and its exit status says why; if it lives on, nobody can talk to it."""
        self.failing.set()
        if not await self._ladder.ended_within(_CLOSED_GRACE_S):
            await self._break(f"{what} and lives on")

    async def _break(self, fault: str) -> None:
        """Nothing that it says from now on can be trusted."""
        self.fault = fault
        self.failing.set()
        _log.error("worker %d broke the protocol: %s", self.pid, fault)
        await self._ladder.kill()

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
            case link.LEASE_ASK:
                return partial(self._handlers.lease_ask, msgspec.json.decode(params, type=link.LeaseAsk))
            case link.LEASE_DONE:
                return self._handlers.lease_done
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
            while chunk := await stderr.receive_some(READ_BYTES):
                for line in self.stderr.feed(bytes(chunk), trio.current_time()):
                    _log.debug("worker %d: %s", self.pid, line)
                    self._look_for_origin(line)
        except PIPE_CLOSED:
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
