"""Which worker computes which request. Pure.

A flight ends when the worker has answered, or is gone; also when the client no longer waits.
"""

from collections.abc import Iterator
from typing import Protocol

import msgspec

from mlxsup.protocol.worker_link import Order
from mlxsup.supervisor.generation.request import GenerationRequest


class Port(Protocol):
    """A worker that is ready, as far as requests go. None of this waits."""

    @property
    def questions(self) -> int:
        """So many that are no requests it has not answered."""
        ...

    def start(self, id: int, order: Order) -> None:
        """Raises RpcError when the order can't be sent."""
        ...

    def cancel(self, id: int, *, goes_on: bool) -> None:
        """`goes_on`: it will be given again, and nothing that the worker holds back of its text is to be said."""
        ...


class Place(msgspec.Struct, frozen=True):
    """In the worker that serves. `kv_bytes_max` is what all its KV caches may hold together, None if that is not known."""

    port: Port
    generation: int
    context_tokens: int
    kv_bytes_per_token: int
    kv_bytes_max: int | None

    def kv_bytes(self, prompt_tokens: int, max_tokens: int) -> int:
        """Of a request's cache when it has got all that it may get."""
        return min(prompt_tokens + max_tokens, self.context_tokens) * self.kv_bytes_per_token


class Flight(msgspec.Struct):
    """`tokens_before` it began in this place; `kv_bytes` is the bound of its cache."""

    request: GenerationRequest
    port: Port
    generation: int
    tokens_before: int
    prompt_tokens: int
    kv_bytes: int
    gives_way: bool = False


class Flights:
    """In the order in which they began."""

    def __init__(self) -> None:
        self._flights: dict[int, Flight] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def __contains__(self, id: int) -> bool:
        return id in self._flights

    def __iter__(self) -> Iterator[Flight]:
        return iter(self._flights.values())

    def add(self, flight: Flight) -> None:
        assert flight.request.id not in self._flights
        self._flights[flight.request.id] = flight

    def get(self, id: int, port: Port) -> Flight | None:
        """None also when another worker has it."""
        flight = self._flights.get(id)
        return flight if flight is not None and flight.port is port else None

    def find(self, id: int) -> Flight | None:
        return self._flights.get(id)

    def remove(self, id: int) -> None:
        del self._flights[id]

    def of(self, port: Port | None) -> list[Flight]:
        return [flight for flight in self._flights.values() if flight.port is port]

    def any_of(self, port: Port) -> bool:
        return any(flight.port is port for flight in self._flights.values())
