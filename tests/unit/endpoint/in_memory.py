"""A whole supervisor in memory, its workers too, and clients on streams in memory: for the mock clock."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import trio
import trio.testing

from mlxsup.config.schema import Config, Model, Qos, Recovery, Server
from mlxsup.protocol.framing import LINES, Frame, Framing
from mlxsup.supervisor.endpoint.connection import Connection
from mlxsup.supervisor.events import EventBus
from mlxsup.supervisor.models.names import Source
from mlxsup.supervisor.models.store import Store
from mlxsup.supervisor.pool.hatchery import Hatchery
from mlxsup.supervisor.pool.life import WorkerSource
from mlxsup.supervisor.pool.pool import Pool
from mlxsup.supervisor.pool.process import Observation
from mlxsup.supervisor.qos.runner_levers import RunnerLevers
from mlxsup.supervisor.qos.watch import SloWatch
from mlxsup.supervisor.service import Service
from tests.fakes.memory_worker import Plan, WorkerShop

MODEL = "m"
# On the mock clock: reached only by what would otherwise wait for ever.
WAIT_S = 3600.0
_FRAME_BYTES_MAX = 1 << 30
_CHUNK_BYTES = 64 * 1024
_AVAILABLE_BYTES = 1 << 40


class NoWitness:
    def worker_died(self, *_: object) -> None:
        pass

    def request_quarantined(self, _: object) -> None:
        pass

    def requests_forgiven(self, _: object) -> None:
        pass


class _Pool(Pool):
    """The real one, but that its workers come from a shop."""

    def __init__(self, shop: WorkerShop, config: Config, events: EventBus, nursery: trio.Nursery) -> None:
        self._memory_hatchery = Hatchery(shop.spawn, config.worker, nursery)
        self._shop = shop
        super().__init__(
            config,
            Path("/config"),
            Store(Path("/cache")),
            events,
            nursery,
            witness=NoWitness(),
            quarantined=[],
        )

    def _worker_source(self, _: str, __: Source, ___: Model) -> WorkerSource:
        async def locate() -> Path:
            await trio.lowlevel.checkpoint()
            return Path("/model")

        async def weigh() -> None:
            return None

        return WorkerSource(
            locate=locate,
            hatch=self._memory_hatchery.hatch,
            observe=lambda pid: Observation(1, _AVAILABLE_BYTES, self._shop.by_pid(pid).stopped),
            available=self._available_bytes,
            weigh=weigh,
        )

    def _available_bytes(self) -> int:
        return _AVAILABLE_BYTES

    def _total_bytes(self) -> int:
        return _AVAILABLE_BYTES


class MemorySupervisor:
    """`service` is the real one; `shop` has the workers that it was given."""

    def __init__(self, service: Service, shop: WorkerShop, nursery: trio.Nursery) -> None:
        self.service = service
        self.shop = shop
        self._nursery = nursery

    def connect(self, framing: Framing = LINES, *, slow: bool = False) -> "MemoryClient":
        """A new client; with `slow` a byte is only sent when the client takes it."""
        pair = trio.testing.lockstep_stream_pair if slow else trio.testing.memory_stream_pair
        ours, theirs = pair()
        client = MemoryClient(ours, framing)
        self._nursery.start_soon(self._serve, _ServerSide(theirs, client.gone), client)
        return client

    async def _serve(self, stream: "_ServerSide", client: "MemoryClient") -> None:
        try:
            await Connection(stream, self.service, "client").run()
        finally:
            # Without a checkpoint, in which a cancellation could take the place of a connection's own exception.
            stream.close()
            client.served.set()


class _ServerSide:
    """What a `Connection` reads and writes."""

    def __init__(self, stream: trio.StapledStream[Any, Any], gone: trio.Event) -> None:
        self._stream = stream
        self._gone = gone

    def close(self) -> None:
        self._stream.send_stream.close()
        self._stream.receive_stream.close()

    async def receive_some(self, max_bytes: int) -> bytes:
        return bytes(await self._stream.receive_some(max_bytes))

    async def send_all(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def wait_gone(self) -> None:
        await self._gone.wait()


class MemoryClient:
    """Sends whatever bytes it is given and reads frames. `served` is set once its connection has ended."""

    def __init__(self, stream: trio.StapledStream[Any, Any], framing: Framing) -> None:
        self._stream = stream
        self._framing = framing
        self._decoder = framing.make_decoder(_FRAME_BYTES_MAX)
        self._frames: list[bytes] = []
        self.gone = trio.Event()
        self.served = trio.Event()

    async def send_bytes(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def send(self, *messages: Any) -> None:
        """Each in a frame of its own; bytes are sent as they are, all else as JSON."""
        for message in messages:
            payload = message if isinstance(message, bytes) else msgspec.json.encode(message)
            await self.send_bytes(self._framing.encode(payload))

    async def request(self, id: Any, method: str, params: Any = None) -> None:
        await self.send(
            {"jsonrpc": "2.0", "id": id, "method": method, "params": {} if params is None else params}
        )

    async def notify(self, method: str, params: Any = None) -> None:
        await self.send({"jsonrpc": "2.0", "method": method, "params": {} if params is None else params})

    async def generate(self, id: Any, tokens: int = 3, **params: Any) -> None:
        await self.request(id, "generate", {"model": MODEL, "prompt": "p", "max_tokens": tokens} | params)

    async def cancel(self, id: Any) -> None:
        await self.notify("$/cancelRequest", {"id": id})

    async def receive(self) -> Any:
        """The next message."""
        with trio.fail_after(WAIT_S):
            while not self._frames:
                assert await self._receive_chunk(), "the connection was closed"
        return msgspec.json.decode(self._frames.pop(0))

    async def receive_response(self) -> Any:
        """The next message that is no notification."""
        while "method" in (message := await self.receive()):
            pass
        return message

    async def receive_rest(self) -> list[Any]:
        """Everything until the server closes."""
        with trio.fail_after(WAIT_S):
            while await self._receive_chunk():
                pass
        return self.received()

    def received(self) -> list[Any]:
        """What has come and was not returned yet."""
        frames, self._frames = self._frames, []
        return [msgspec.json.decode(frame) for frame in frames]

    async def _receive_chunk(self) -> bool:
        chunk = bytes(await self._stream.receive_some(_CHUNK_BYTES))
        for event in self._decoder.feed(chunk):
            assert isinstance(event, Frame)
            self._frames.append(event.data)
        return bool(chunk)

    async def finish(self) -> list[Any]:
        """End the input, as `< file` does, and read what is still answered."""
        await self.end_input()
        return await self.receive_rest()

    async def end_input(self) -> None:
        await self._stream.send_eof()

    async def leave(self) -> None:
        """Close both ways, and wait until the server has noticed."""
        self.gone.set()
        await self._stream.aclose()
        with trio.fail_after(WAIT_S):
            await self.served.wait()


async def load(client: MemoryClient) -> None:
    """Have the worker ready before what a test is about."""
    await client.request("load", "model/load", {"model": MODEL})
    assert (await client.receive_response())["id"] == "load"


@asynccontextmanager
async def memory_supervisor(
    *plans: Plan,
    server: Server | None = None,
    model: Model | None = None,
    recovery: Recovery | None = None,
    qos: Qos | None = None,
    others: dict[str, Model] | None = None,
) -> AsyncIterator[MemorySupervisor]:
    """With one model, `MODEL`, whose workers follow `plans`, and with `others`."""
    config = Config(
        server=server or Server(),
        recovery=recovery or Recovery(),
        qos=qos or Qos(),
        models={MODEL: model or Model()} | (others or {}),
    )
    events = EventBus()
    async with trio.open_nursery() as workers, trio.open_nursery() as nursery:
        shop = WorkerShop(workers, *plans)
        pool = _Pool(shop, config, events, nursery)
        slos = SloWatch(
            config.models,
            config.qos,
            RunnerLevers(pool.runner, events, nursery, config.qos.cooldown_s),
            trio.current_time(),
        )
        service = Service(config, pool, Store(Path("/cache")), events, slos, nursery)
        nursery.start_soon(slos.run)
        yield MemorySupervisor(service, shop, nursery)
        nursery.cancel_scope.cancel()
