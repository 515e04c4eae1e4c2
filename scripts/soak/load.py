"""The streams that a soak keeps going, on one connection with the supervisor's events."""

from collections.abc import Callable, Iterator

import trio

from mlxsup.protocol.client.aio import Client, ConnectionLostError
from mlxsup.protocol.client.exchange import Notification
from mlxsup.protocol.errors import RpcError
from mlxsup.protocol.service import TOPICS, Event
from scripts.soak.history import History
from scripts.soak.orders import Order


class SoakStuckError(Exception):
    """What had to happen did not, within its time."""


class Load:
    """Everything that arrives goes to `history`, with its moment; who waits for something there is woken."""

    def __init__(self, client: Client, history: History, request_limit_s: float) -> None:
        self._client = client
        self._history = history
        self._request_limit_s = request_limit_s
        self._changed = trio.Event()
        # By the model whose streams pause.
        self._paused: dict[str, trio.Event] = {}
        self._stopping = False

    async def listen(self) -> None:
        self._client.listen(self._take)
        await self._client.call("server/subscribe", {"topics": list(TOPICS)})

    def _take(self, notification: Notification) -> None:
        if isinstance(notification, Event):
            self._history.event(notification, trio.current_time())
            self._note()

    async def keep_asking(self, model: str, orders: Iterator[Order]) -> None:
        """One stream: one request after the other, until `stop`."""
        for order in orders:
            while model in self._paused:
                await self._paused[model].wait()
            if self._stopping:
                return
            await self._ask(model, order)

    async def _ask(self, model: str, order: Order) -> None:
        number = self._history.sent(model, order)
        try:
            with trio.fail_after(self._request_limit_s):
                async with self._client.stream("generate", {"model": model, **order.params}) as stream:
                    async for piece in stream:
                        self._history.piece(number, piece, trio.current_time())
                        self._note()
                assert stream.result is not None
                self._history.answered(number, stream.result)
        except RpcError as error:
            self._history.refused(number, error)
        except ConnectionLostError as error:
            self._history.lost(number, str(error))
            raise
        except trio.TooSlowError:
            self._history.lost(number, f"not answered within {self._request_limit_s:g} s")
        self._note()

    def pause(self, model: str) -> None:
        """No stream of the model asks for anything more before `resume`."""
        self._paused[model] = trio.Event()

    def resume(self, model: str) -> None:
        self._paused.pop(model).set()

    def stop(self) -> None:
        """What runs is still waited for."""
        self._stopping = True
        for model in tuple(self._paused):
            self.resume(model)

    async def until(self, happened: Callable[[], bool], limit_s: float, what: str) -> None:
        """Wait for something in `history`. Raises SoakStuckError after `limit_s`."""
        with trio.move_on_after(limit_s):
            while not happened():
                await self._changed.wait()
            return
        raise SoakStuckError(f"{what}: not within {limit_s:g} s")

    def _note(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
