"""Requests that wait for a place in a model's batch. Pure.

The most urgent tier first; within it clients take turns, and each client's requests go in order of arrival.
"""

from collections.abc import Iterator

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import Priority
from mlxsup.supervisor.generation.request import GenerationRequest

# A tier: the next client to be served is the first; so is each client's next request.
_Tier = dict[str, dict[int, GenerationRequest]]


class RequestQueue:
    def __init__(self, requests_max: int) -> None:
        self._requests_max = requests_max
        self._tiers: dict[Priority, _Tier] = {tier: {} for tier in Priority}
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def __iter__(self) -> Iterator[GenerationRequest]:
        for tier in self._tiers.values():
            for requests in tier.values():
                yield from requests.values()

    def put(self, request: GenerationRequest, retry_after_ms: int | None) -> None:
        """Raises RpcError OVERLOADED when the queue is full."""
        if self._waiting >= self._requests_max:
            raise RpcError(
                ErrorKind.OVERLOADED,
                f"the queue of this model is full ({self._requests_max} requests wait); try again later",
                retry_after_ms=retry_after_ms,
            )
        self._tiers[request.priority].setdefault(request.client, {})[request.id] = request
        self._waiting += 1

    def put_back(self, request: GenerationRequest) -> None:
        """To the head: it had its turn, and lost its worker. It was accepted before, so no bound refuses it."""
        tier = self._tiers[request.priority]
        own = {request.id: request, **tier.pop(request.client, {})}
        self._tiers[request.priority] = {request.client: own, **tier}
        self._waiting += 1

    def peek(self) -> GenerationRequest | None:
        """Whom `pop` would give."""
        return next(iter(self), None)

    def pop(self) -> GenerationRequest | None:
        for tier in self._tiers.values():
            if not tier:
                continue
            client = next(iter(tier))
            requests = tier.pop(client)
            request = requests.pop(next(iter(requests)))
            if requests:
                tier[client] = requests
            self._waiting -= 1
            return request
        return None

    def remove(self, request: GenerationRequest) -> bool:
        """Whether it was waiting here."""
        tier = self._tiers[request.priority]
        requests = tier.get(request.client, {})
        if requests.pop(request.id, None) is None:
            return False
        if not requests:
            del tier[request.client]
        self._waiting -= 1
        return True
