"""Requests that come at moments of their own, whatever became of those before, and what the client saw of each."""

import random
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import trio

from mlxsup.protocol.client.aio import Client, ConnectionLostError
from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import GenerationResult
from scripts.benchmarks.figures import quantile

# Ends that a server may give to a request that it can't or won't serve; anything else is a request that was lost.
_REFUSALS = frozenset({ErrorKind.OVERLOADED, ErrorKind.DEADLINE_EXCEEDED})


class Order(msgspec.Struct, frozen=True):
    """A request for text; `text` is the one that has to come, where that is known."""

    method: str
    params: dict[str, Any]
    text: str | None = None


class Asked(msgspec.Struct):
    """Moments are of the client's monotonic clock, in seconds; `deltas` have the number of their characters.

    It ends with a result or an error, or else with `fault`, which says in words what became of it.
    """

    order: Order
    sent_s: float
    deltas: list[tuple[float, int]] = []
    ended_s: float = 0.0
    result: GenerationResult | None = None
    error: RpcError | None = None
    fault: str | None = None

    @property
    def tokens(self) -> int:
        """Of a complete answer."""
        return self.result.usage.completion_tokens if self.result is not None else 0

    @property
    def first_s(self) -> float | None:
        return self.deltas[0][0] if self.deltas else None

    @property
    def ttft_ms(self) -> float:
        """Of one that was answered."""
        return ((self.first_s or self.ended_s) - self.sent_s) * 1000

    @property
    def total_ms(self) -> float:
        return (self.ended_s - self.sent_s) * 1000

    @property
    def is_refused(self) -> bool:
        """For want of room or time, before or after it was accepted."""
        return self.error is not None and self.error.kind in _REFUSALS

    @property
    def differs(self) -> bool:
        """Its text is not the one that had to come."""
        return self.result is not None and self.order.text not in (None, self.result.text)

    def tokens_between(self, since_s: float, until_s: float) -> float:
        """Those of a complete answer are spread over its deltas by their characters."""
        chars = sum(chars for _, chars in self.deltas)
        within = sum(chars for moment_s, chars in self.deltas if since_s <= moment_s < until_s)
        return self.tokens * within / chars if chars else 0.0


def answered(all_asked: Iterable[Asked]) -> list[Asked]:
    return [asked for asked in all_asked if asked.result is not None]


def tokens_per_s(all_asked: Iterable[Asked], since_s: float, until_s: float) -> float:
    """Of answers that were completed, sooner or later; what came between the two moments."""
    return sum(asked.tokens_between(since_s, until_s) for asked in all_asked) / (until_s - since_s)


def faults(all_asked: Iterable[Asked]) -> list[str]:
    """Of the requests that were lost: no end, a wrong one, or a text that is not what was streamed."""
    return [asked.fault for asked in all_asked if asked.fault is not None]


def poisson(rate_per_s: float, seed: int) -> Iterator[float]:
    """Endless: seconds between arrivals."""
    chance = random.Random(f"arrivals {seed}")
    while True:
        yield chance.expovariate(rate_per_s)


def regular(rate_per_s: float) -> Iterator[float]:
    """Endless: one at once, and then at that rate."""
    yield 0.0
    while True:
        yield 1 / rate_per_s


class Traffic:
    """Of one connection; `asked` has all requests in the order in which they were sent."""

    def __init__(self, client: Client, limit_s: float) -> None:
        """A request that has no end after `limit_s` is lost."""
        self._client = client
        self._limit_s = limit_s
        self.asked: list[Asked] = []

    @asynccontextmanager
    async def arriving(self, gaps_s: Iterable[float], orders: Iterator[Order]) -> AsyncIterator[None]:
        """An open loop while the block runs; then whatever was asked is waited for."""
        stop = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._arrive, gaps_s, orders, stop)
            yield
            stop.set()

    @asynccontextmanager
    async def keeping(self, streams: int, orders: Iterator[Order]) -> AsyncIterator[None]:
        """A closed loop of so many, likewise."""
        stop = trio.Event()
        async with trio.open_nursery() as nursery:
            for _ in range(streams):
                nursery.start_soon(self._keep, orders, stop)
            yield
            stop.set()

    async def _arrive(self, gaps_s: Iterable[float], orders: Iterator[Order], stop: trio.Event) -> None:
        due_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            for gap_s, order in zip(gaps_s, orders, strict=False):
                due_s += gap_s
                with trio.move_on_at(due_s):
                    await stop.wait()
                if stop.is_set():
                    return
                nursery.start_soon(self.ask, order)

    async def _keep(self, orders: Iterator[Order], stop: trio.Event) -> None:
        while not stop.is_set():
            asked = await self.ask(next(orders))
            if asked.result is None:
                raise RuntimeError(f"a closed loop is never refused: {asked.error or asked.fault}")

    async def ask(self, order: Order) -> Asked:
        asked = Asked(order, trio.current_time())
        self.asked.append(asked)
        pieces: list[str] = []
        try:
            with trio.fail_after(self._limit_s):
                async with self._client.stream(order.method, order.params) as stream:
                    async for piece in stream:
                        asked.deltas.append((trio.current_time(), len(piece)))
                        pieces.append(piece)
            asked.result = stream.result
            if asked.result is None or asked.result.text != "".join(pieces):
                asked.fault = "the pieces of a text are not the text"
        except RpcError as error:
            asked.error = error
            if error.kind not in _REFUSALS:
                asked.fault = f"{error.kind}: {error.message}"
        except ConnectionLostError as error:
            asked.fault = str(error)
        except trio.TooSlowError:
            asked.fault = f"no end within {self._limit_s:g} s"
        asked.ended_s = trio.current_time()
        return asked


class Capacity(msgspec.Struct, frozen=True):
    """What a server gives that always has more to do than it can; `service_s` is a request's median time in the batch."""

    tokens_per_s: float
    requests_per_s: float
    service_s: float


async def measure_capacity(
    client: Client, orders: Iterator[Order], *, streams: int, settle_s: float, seconds: float, limit_s: float
) -> Capacity:
    """By a closed loop of `streams`, more than a batch has places.

    Raises:
        RuntimeError: a request was not answered.
    """
    traffic = Traffic(client, limit_s)
    async with traffic.keeping(streams, orders):
        await trio.sleep(settle_s)
        since_s = trio.current_time()
        await trio.sleep(seconds)
        until_s = trio.current_time()
    if lost := faults(traffic.asked):
        raise RuntimeError(f"capacity was not measured: {lost[0]}")
    rate = tokens_per_s(traffic.asked, since_s, until_s)
    return capacity_of(answered(traffic.asked), rate)


def capacity_of(all_answered: list[Asked], rate: float) -> Capacity:
    """`rate` is in tokens a second."""
    tokens = sum(asked.tokens for asked in all_answered) / len(all_answered)
    services_ms = [asked.total_ms - asked.result.timings.queue_ms for asked in all_answered if asked.result]
    return Capacity(rate, rate / tokens, quantile(services_ms, 0.5) / 1000)
