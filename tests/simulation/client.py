"""Clients of a simulated supervisor, and the server that serves them, over streams in memory."""

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
import trio
import trio.testing

from mlxsup.protocol.framing import LINES, Frame, LineDecoder
from mlxsup.protocol.methods import CANCEL, DELTA, EVENT
from mlxsup.supervisor.endpoint.connection import Connection
from mlxsup.supervisor.endpoint.unix_server import FINISH_S
from mlxsup.supervisor.service import Service
from tests.simulation.history import Answered, Asked, Cancelled, Closed, Delta, Entry, Stray
from tests.simulation.pipe import make_pipe
from tests.simulation.schedule import Ask, Question

_FRAME_BYTES_MAX = 1 << 24
_SLOW_S = 0.3


class Notebook(Protocol):
    def note(self, entry: Entry) -> None: ...


class ServerSide:
    """What a `Connection` reads and writes."""

    def __init__(
        self, incoming: trio.abc.ReceiveStream, outgoing: trio.abc.SendStream, gone: trio.Event
    ) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._gone = gone

    async def receive_some(self, max_bytes: int) -> bytes:
        return bytes(await self._incoming.receive_some(max_bytes))

    async def send_all(self, data: bytes) -> None:
        await self._outgoing.send_all(data)

    async def wait_gone(self) -> None:
        await self._gone.wait()

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._incoming)
        await trio.aclose_forcefully(self._outgoing)


class SimulatedClient:
    """Takes the lowest id that is free, so that what comes late for an answered one shows."""

    def __init__(self, number: int, notebook: Notebook, *, slow: bool) -> None:
        self.number = number
        self._notebook = notebook
        self._slow = slow
        self._sending = trio.Lock()
        self._decoder = LineDecoder(_FRAME_BYTES_MAX)
        self.waiting: dict[int, str] = {}
        self.last_key: dict[int, str] = {}
        self.closed = False
        self.asks_no_more = False
        self.gone = trio.Event()
        self._outgoing, incoming = make_pipe()
        outgoing: trio.abc.SendStream
        self._incoming: trio.abc.ReceiveStream
        # To a slow one a byte is only sent when it takes it.
        outgoing, self._incoming = trio.testing.lockstep_stream_one_way_pair() if slow else make_pipe()
        self.server_side = ServerSide(incoming, outgoing, self.gone)

    async def ask(self, calls: Sequence[Ask | Question]) -> None:
        """A lone request, or more than one as a batch."""
        async with self._sending:
            if self.closed or self.asks_no_more:
                return
            ids = [self._take_id(call.key) for call in calls]
            messages = [_message(id, call) for id, call in zip(ids, calls, strict=True)]
            if not await self._send(messages[0] if len(messages) == 1 else messages):
                for id in ids:
                    self.waiting.pop(id, None)
                return
            # Nobody has run since the bytes left.
            for call in calls:
                self._note(
                    Asked(at_s=trio.current_time(), client=self.number, key=call.key, method=_method(call))
                )

    async def cancel(self, key: str) -> None:
        async with self._sending:
            id = next((id for id, waiting in self.waiting.items() if waiting == key), None)
            if id is None or self.closed or self.asks_no_more:
                return
            message = {"jsonrpc": "2.0", "method": CANCEL, "params": {"id": id}}
            if await self._send(message):
                self._note(Cancelled(at_s=trio.current_time(), client=self.number, key=key))

    async def leave(self) -> None:
        if not self.closed:
            self._close("client")
            self.gone.set()
            await trio.aclose_forcefully(self._outgoing)
            await trio.aclose_forcefully(self._incoming)

    async def end_input(self) -> None:
        async with self._sending:
            if not self.closed and not self.asks_no_more:
                self.asks_no_more = True
                self._note(Closed(at_s=trio.current_time(), client=self.number, by="input"))
                await self._outgoing.aclose()

    async def read(self) -> None:
        """Until the connection is closed."""
        try:
            while chunk := await self._incoming.receive_some(65536):
                for event in self._decoder.feed(bytes(chunk)):
                    assert isinstance(event, Frame)
                    message = msgspec.json.decode(event.data)
                    for one in message if isinstance(message, list) else [message]:
                        self._take(one)
                if self._slow:
                    await trio.sleep(_SLOW_S)
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            pass
        if not self.closed:
            self._close("server")

    def _close(self, by: str) -> None:
        self.closed = True
        self.waiting.clear()
        self._note(Closed(at_s=trio.current_time(), client=self.number, by=by))

    def _take_id(self, key: str) -> int:
        id = 1
        while id in self.waiting:
            id += 1
        self.waiting[id] = self.last_key[id] = key
        return id

    async def _send(self, message: Any) -> bool:
        try:
            await self._outgoing.send_all(LINES.encode(msgspec.json.encode(message)))
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            return False
        return True

    def _take(self, message: dict[str, Any]) -> None:
        if self.closed:
            return
        now_s = trio.current_time()
        method = message.get("method")
        if method is None:
            key = self.waiting.pop(message["id"], None)
            if key is not None:
                self._note(_answered(now_s, key, message))
                return
        elif method == DELTA:
            key = self.waiting.get(message["params"]["id"])
            if key is not None:
                self._note(Delta(at_s=now_s, key=key, text=message["params"]["text"]))
                return
        elif method == EVENT or message["params"]["token"] in self.waiting:
            return
        self._note(Stray(at_s=now_s, client=self.number, what=str(message)))

    def _note(self, entry: Entry) -> None:
        self._notebook.note(entry)


class SimulatedServer:
    """As the one on the Unix socket: connections until `finish`, then each ends once it is answered."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._connections: dict[int, Connection] = {}
        self._finishing = trio.Event()
        self._none_left = trio.Event()

    async def run(self, clients: Sequence[SimulatedClient]) -> None:
        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(self._serve, client)
            await self._finishing.wait()
            with trio.move_on_after(FINISH_S):
                while self._connections:
                    self._none_left = trio.Event()
                    await self._none_left.wait()
            nursery.cancel_scope.cancel()

    def finish(self) -> None:
        self._finishing.set()
        for connection in self._connections.values():
            connection.shut_down()

    async def _serve(self, client: SimulatedClient) -> None:
        connection = Connection(client.server_side, self._service, str(client.number))
        self._connections[client.number] = connection
        self._service.connections += 1
        try:
            await connection.run()
        finally:
            self._service.connections -= 1
            del self._connections[client.number]
            await client.server_side.aclose()
            if not self._connections:
                self._none_left.set()


def _method(call: Ask | Question) -> str:
    return "generate" if isinstance(call, Ask) else call.method


def _message(id: int, call: Ask | Question) -> dict[str, Any]:
    params: dict[str, Any]
    if isinstance(call, Question):
        params = call.params
    else:
        params = {
            name: value
            for name in call.__struct_fields__
            if name != "key" and (value := getattr(call, name)) is not None
        }
    return {"jsonrpc": "2.0", "id": id, "method": _method(call), "params": params}


def _answered(now_s: float, key: str, message: dict[str, Any]) -> Answered:
    error = message.get("error", {})
    data = error.get("data", {})
    # What the supervisor measures of itself is real, and differs each time.
    result = {name: value for name, value in (message.get("result") or {}).items() if name != "supervisor"}
    return Answered(
        at_s=now_s,
        key=key,
        kind=data.get("kind"),
        message=error.get("message"),
        data={name: value for name, value in data.items() if name != "kind"},
        result=result,
    )
