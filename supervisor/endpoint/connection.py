"""One client: its frames in, its answers out, whatever carries the bytes.

The reader never waits for a method, so that a cancel is seen while others run; text requests have no task of
their own. Every request gets one response, in a batch together with its neighbours; the order in which a client
receives what belongs to one request is that in which it happened.

At the end of its input a client still gets what it asked for; when it is gone, its requests are cancelled, but for
those with an idempotency key: it may come back for them.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import msgspec
import trio

from mlxsup.protocol.errors import ErrorKind, InvalidRequestError, ParseError, RpcError
from mlxsup.protocol.framing import BadHeader, DetectingDecoder, Event, Frame, Oversize
from mlxsup.protocol.generation import ChatParams, GenerateParams, GenerationResult
from mlxsup.protocol.jsonrpc import (
    Batch,
    Call,
    Id,
    Invalid,
    encode_batch,
    encode_error,
    encode_notification,
    encode_result,
    parse_calls,
)
from mlxsup.protocol.methods import CANCEL, EVENT, METHODS, PROGRESS
from mlxsup.protocol.params import decode_params
from mlxsup.protocol.service import CancelParams, Progress
from mlxsup.protocol.service import Event as ServerEvent
from mlxsup.supervisor.endpoint.outbox import ClientOutbox
from mlxsup.supervisor.generation.extras import Extras
from mlxsup.supervisor.service import Service

_log = logging.getLogger(__name__)

_READ_BYTES = 64 * 1024
# So much leaves in one piece; what comes meanwhile is merged.
_WRITE_BYTES = 64 * 1024
# A chunk can hold thousands of small frames: after so long it is the others' turn.
_TURN_S = 0.005


class ByteStream(Protocol):
    """What carries the bytes; `receive_some` gives b"" at the end of the client's input."""

    async def receive_some(self, max_bytes: int) -> bytes: ...

    async def send_all(self, data: bytes) -> None: ...

    async def wait_gone(self) -> None:
        """Return once nobody can read answers any more; asked after the end of the input."""
        ...


class _BatchAnswers:
    """The responses of one batch, sent as one frame when the last is there."""

    def __init__(self, missing: int, connection: "Connection") -> None:
        self._missing = missing
        self._connection = connection
        self._responses: list[bytes] = []
        self._bytes = 0

    def add(self, response: bytes) -> None:
        self._responses.append(response)
        self._missing -= 1
        if self._missing:
            self._bytes += len(response)
            self._connection.hold(len(response))
        else:
            self._connection.put_batch(encode_batch(self._responses), self._bytes)


class _Answer:
    """The place of one request's response. It is filled once; then the request is no longer in flight."""

    def __init__(self, connection: "Connection", id: Id, batch: _BatchAnswers | None) -> None:
        self._connection = connection
        self._batch = batch
        self.id = id

    # As the sink of a request for text:

    def delta(self, text: str, extras: Extras | None) -> None:
        self._connection.put_delta(self.id, text, extras)

    def result(self, result: GenerationResult) -> None:
        self.respond(result)

    def error(self, error: RpcError) -> None:
        self._fill(encode_error(self.id, error))

    # As the caller of any other method:

    @property
    def client(self) -> str:
        return self._connection.name

    def respond(self, result: Any) -> None:
        self._fill(encode_result(self.id, result))

    def progress(self, value: dict[str, Any]) -> None:
        self._connection.put_progress(self.id, value)

    def subscribe(self, topics: frozenset[str]) -> None:
        self._connection.subscribe(topics)

    def _fill(self, response: bytes) -> None:
        self._connection.settle(self.id)
        if self._batch is not None:
            self._batch.add(response)
        else:
            self._connection.put(response)


class Connection:
    """`name` stands for the client where a request names none."""

    def __init__(self, stream: ByteStream, service: Service, name: str) -> None:
        self._stream = stream
        self._service = service
        self.name = name
        self._limits = service.config.server
        self._decoder = DetectingDecoder(self._limits.frame_bytes_max)
        self._outbox = ClientOutbox()
        self._held_bytes = 0
        self._changed = trio.Event()
        self._cancels: dict[Id, Callable[[], None]] = {}
        # Of those that are not cancelled when the client is gone: what is done instead.
        self._leaves: dict[Id, Callable[[], None]] = {}
        self._params_bytes: dict[Id, int] = {}
        self._topics: frozenset[str] = frozenset()
        self._closing = False
        self._shutting_down = False
        # More waits for the client than may, and this ends.
        self._cut = False
        self.lost_output = False
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Serve until the client has gone, or has ended its input and been answered."""
        try:
            with self._service.events.subscribed(self._put_event):
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    nursery.start_soon(self._write, nursery.cancel_scope)
                    await self._read()
                    # From here on the writer ends it, once everything is answered; or the client's leaving does.
                    self.finish()
                    await self._stream.wait_gone()
                    nursery.cancel_scope.cancel()
        finally:
            for id, cancel in list(self._cancels.items()):
                self._leaves.get(id, cancel)()
            self._service.hold_params(-sum(self._params_bytes.values()))
            self._params_bytes.clear()

    def finish(self) -> None:
        """End once everything that was asked is answered and sent."""
        self._closing = True
        self._changed.set()

    def shut_down(self) -> None:
        """The supervisor ends: what still runs is answered so, and then this ends."""
        self._shutting_down = True
        for cancel in list(self._cancels.values()):
            cancel()
        self.finish()

    async def _read(self) -> None:
        try:
            while chunk := await self._stream.receive_some(_READ_BYTES):
                began_s = trio.current_time()
                for event in self._decoder.feed(chunk):
                    self._take(event)
                    if isinstance(event, BadHeader):
                        return
                    if trio.current_time() - began_s > _TURN_S:
                        await trio.lowlevel.checkpoint()
                        began_s = trio.current_time()
            for event in self._decoder.finish():
                self._take(event)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def _write(self, serving: trio.CancelScope) -> None:
        decoder = self._decoder
        try:
            while self._outbox or self._cancels or not self._closing:
                if not self._outbox:
                    await self._changed.wait()
                self._changed = trio.Event()
                payloads = self._outbox.take(_WRITE_BYTES)
                if payloads:
                    await self._stream.send_all(decoder.framing.encode_all(payloads))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.lost_output = True
        serving.cancel()

    def _take(self, event: Event) -> None:
        match event:
            case Frame(data=data):
                self._take_frame(data)
            case Oversize(frame_bytes_max=limit):
                error = RpcError(
                    ErrorKind.LIMIT_EXCEEDED, f"a frame is limited to {limit} bytes; send less at once"
                )
                self.put(encode_error(None, error))
            case BadHeader(reason=reason):
                self.put(encode_error(None, ParseError(reason)))

    def _take_frame(self, data: bytes) -> None:
        match parse_calls(data, self._limits.batch_calls_max):
            case Batch(calls=calls):
                answers = sum(1 for call in calls if isinstance(call, Invalid) or not call.is_notification)
                batch = _BatchAnswers(answers, self)
                for call in calls:
                    self._take_call(call, batch)
            case call:
                self._take_call(call, None)

    def _take_call(self, call: Call | Invalid, batch: _BatchAnswers | None) -> None:
        if self._cut:
            # The rest of a batch, or of a chunk: what it asks for may be kept, and thousands of times as long as the call.
            return
        if isinstance(call, Invalid):
            response = encode_error(call.id, call.error)
            batch.add(response) if batch is not None else self.put(response)
        elif isinstance(call.id, msgspec.UnsetType):
            self._take_notification(call)
        elif call.id in self._cancels:
            response = encode_error(call.id, InvalidRequestError("a request with this id is in flight"))
            batch.add(response) if batch is not None else self.put(response)
        else:
            self._start(call, _Answer(self, call.id, batch))

    def _take_notification(self, call: Call) -> None:
        if call.method != CANCEL:
            return
        try:
            id = decode_params(call.params, CancelParams).id
        except RpcError:
            # A notification is never answered, also not for what is wrong with it.
            return
        cancel = self._cancels.get(id)
        if cancel is not None:
            cancel()

    def _start(self, call: Call, answer: _Answer) -> None:
        try:
            self._admit()
            method = METHODS.get(call.method)
            if method is None:
                detail = f"no method {call.method[:100]!r}; rpc.discover lists them"
                raise RpcError(ErrorKind.METHOD_NOT_FOUND, "Method not found", detail=detail)
            self._hold_params(answer.id, call)
            params = decode_params(call.params, method.params)
            if isinstance(params, ChatParams | GenerateParams):
                accepted = self._service.texts.generate(
                    params, self.name, answer, self._params_bytes[answer.id]
                )
                if not accepted.ended:
                    self._cancels[answer.id] = accepted.cancel
                    if params.idempotency_key is not None:
                        self._leaves[answer.id] = accepted.leave
                        self._release_params(answer.id)
            else:
                self._start_task(self._service.handlers[method.name], params, answer)
        except RpcError as error:
            answer.error(error)
        except Exception:  # noqa: BLE001  (a defect answers one request; the others go on)
            answer.error(_defect())

    def _admit(self) -> None:
        if len(self._cancels) >= self._limits.in_flight_requests_max:
            raise RpcError(
                ErrorKind.LIMIT_EXCEEDED,
                f"a connection is limited to {self._limits.in_flight_requests_max} requests in flight; wait for answers",
                retriable=True,
            )

    def _hold_params(self, id: Id, call: Call) -> None:
        """Params are kept until the request is answered, in the queue or as a question: they are bounded together."""
        count = len(call.params or b"")
        if self._service.params_bytes + count > self._limits.params_bytes_max:
            raise RpcError(
                ErrorKind.OVERLOADED,
                f"requests that wait for answers hold {self._limits.params_bytes_max} bytes already; try again later",
                retry_after_ms=1000,
            )
        self._params_bytes[id] = count
        self._service.hold_params(count)

    def _release_params(self, id: Id) -> None:
        self._service.hold_params(-self._params_bytes.pop(id, 0))

    def _start_task(
        self, handler: Callable[[Any, _Answer], Awaitable[Any]], params: Any, answer: _Answer
    ) -> None:
        assert self._nursery is not None
        scope = trio.CancelScope()
        self._cancels[answer.id] = scope.cancel
        self._nursery.start_soon(self._run_task, scope, handler, params, answer)

    async def _run_task(
        self,
        scope: trio.CancelScope,
        handler: Callable[[Any, _Answer], Awaitable[Any]],
        params: Any,
        answer: _Answer,
    ) -> None:
        outcome: Any = None
        with scope:
            try:
                outcome = await handler(params, answer)
            except RpcError as error:
                outcome = error
                if error.kind is ErrorKind.INTERNAL:
                    _log.error("%s %s", error, " ".join(getattr(error, "__notes__", ())))
            except Exception:  # noqa: BLE001  (likewise)
                outcome = _defect()
        if outcome is None:
            outcome = self._cancelled()
        if isinstance(outcome, RpcError):
            answer.error(outcome)
            return
        try:
            answer.respond(outcome)
        except (ValueError, TypeError, OverflowError, RecursionError):
            # It can't be written as JSON, and nothing of it was sent.
            answer.error(_defect())

    def _cancelled(self) -> RpcError:
        if self._shutting_down:
            return RpcError(ErrorKind.SHUTTING_DOWN, "the supervisor is shutting down")
        return RpcError(ErrorKind.CANCELLED, "cancelled")

    # What the answers of this connection use.

    def hold(self, count: int) -> None:
        """So many bytes of answers wait for the rest of their batch."""
        self._check_outbox()
        self._held_bytes += count

    def put_batch(self, frame: bytes, held_bytes: int) -> None:
        self._held_bytes -= held_bytes
        self.put(frame)

    def settle(self, id: Id) -> None:
        self._cancels.pop(id, None)
        self._leaves.pop(id, None)
        self._release_params(id)
        self._outbox.end(id)
        self._changed.set()

    def put_delta(self, id: Id, text: str, extras: Extras | None) -> None:
        self._check_outbox()
        self._outbox.put_delta(id, text, extras)
        self._changed.set()

    def put_progress(self, id: Id, value: dict[str, Any]) -> None:
        self.put(encode_notification(PROGRESS, Progress(token=id, value=value)))

    def subscribe(self, topics: frozenset[str]) -> None:
        self._topics |= topics

    def _put_event(self, event: ServerEvent) -> None:
        if event.topic in self._topics:
            self.put(encode_notification(EVENT, event))

    def put(self, frame: bytes) -> None:
        self._check_outbox()
        self._outbox.put(frame)
        self._changed.set()

    def _check_outbox(self) -> None:
        """What waits already is what counts: one long answer to a client that reads is no fault of its."""
        waiting = self._outbox.bytes_held + self._held_bytes
        if waiting > self._limits.outbox_bytes_max and self._nursery is not None and not self._cut:
            self._cut = True
            _log.warning("%s does not read its answers: closing its connection", self.name)
            self._nursery.cancel_scope.cancel()


def _defect() -> RpcError:
    """What a client is told of the exception that is being handled; the log is told the rest."""
    _log.exception("a method failed")
    return RpcError(ErrorKind.INTERNAL, "an internal error; the supervisor's log has the details")
