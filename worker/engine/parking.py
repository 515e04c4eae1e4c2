"""Caches of sequences that gave way, kept until they go on. The oldest are dropped first when they take too much."""

from collections import OrderedDict
from typing import Any, Generic, Protocol, TypeVar


class Parkable(Protocol):
    id: int
    caches: list[Any]


MemberT = TypeVar("MemberT", bound=Parkable)


class Parking(Generic[MemberT]):
    """At most `bytes_max` bytes of caches; an id has one place."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        # Oldest first, with the bytes of each.
        self._parked: OrderedDict[int, tuple[MemberT, int]] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._parked)

    def put(self, member: MemberT) -> None:
        self.drop(member.id)
        size = sum(cache.nbytes for cache in member.caches)
        if size <= self._bytes_max:
            self._parked[member.id] = (member, size)
            self.bytes += size
            while self.bytes > self._bytes_max:
                self.take(next(iter(self._parked)))

    def take(self, id: int) -> MemberT | None:
        member, size = self._parked.pop(id, (None, 0))
        self.bytes -= size
        return member

    def drop(self, id: int) -> None:
        self.take(id)

    def clear(self) -> None:
        self._parked.clear()
        self.bytes = 0
