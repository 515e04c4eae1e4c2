"""Requests that wait for a place in a model's batch. Pure.

Who had its turn and lost it goes first; then the most urgent tier; within it clients take turns, and each client's
requests go in order of arrival.
"""

from collections import OrderedDict
from collections.abc import Iterator

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import Priority
from mlxsup.supervisor.generation.request import GenerationRequest

# A tier: the next client to be served is the first; so is each client's next request.
_Tier = dict[str, dict[int, GenerationRequest]]


class RequestQueue:
    def __init__(self, requests_max: int) -> None:
        self._requests_max = requests_max
        # By id; the first goes first.
        self._returned: OrderedDict[int, GenerationRequest] = OrderedDict()
        self._tiers: dict[Priority, _Tier] = {tier: {} for tier in Priority}
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    @property
    def returned(self) -> int:
        """So many were put back, and go first."""
        return len(self._returned)

    def __iter__(self) -> Iterator[GenerationRequest]:
        yield from self._returned.values()
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
        """To the head of all. It was accepted before, so no bound refuses it."""
        self.put_behind(request)
        self._returned.move_to_end(request.id, last=False)

    def put_behind(self, request: GenerationRequest) -> None:
        """Behind all that were put back before, and ahead of the others."""
        self._returned[request.id] = request
        self._waiting += 1

    def peek(self) -> GenerationRequest | None:
        """Whom `pop` would give."""
        return next(iter(self), None)

    def pop(self) -> GenerationRequest | None:
        if self._returned:
            self._waiting -= 1
            return self._returned.popitem(last=False)[1]
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
        if self._returned.pop(request.id, None) is not None:
            self._waiting -= 1
            return True
        tier = self._tiers[request.priority]
        requests = tier.get(request.client, {})
        if requests.pop(request.id, None) is None:
            return False
        if not requests:
            del tier[request.client]
        self._waiting -= 1
        return True
