"""A binary heap out of whose middle things can be taken, and in which they can change their place. Pure.

Every operation takes at most a number of steps that grows with the logarithm of the heap's size.
"""

from collections.abc import Hashable
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)
Key = tuple[float, ...]


class IndexedHeap(Generic[Item]):
    """Items by their keys, the least first. No two items have the same key."""

    def __init__(self) -> None:
        self._rows: list[tuple[Key, Item]] = []
        self._index: dict[Item, int] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, item: Item) -> bool:
        return item in self._index

    def first(self) -> tuple[Key, Item] | None:
        return self._rows[0] if self._rows else None

    def put(self, item: Item, key: Key) -> None:
        """Add it, or give it another key."""
        index = self._index.get(item)
        if index is None:
            index = len(self._rows)
            self._rows.append((key, item))
        self._settle((key, item), index)

    def discard(self, item: Item) -> bool:
        """Whether it was there."""
        index = self._index.pop(item, None)
        if index is None:
            return False
        last = self._rows.pop()
        if index < len(self._rows):
            self._settle(last, index)
        return True

    def _settle(self, row: tuple[Key, Item], index: int) -> None:
        """Put a row where there is a hole, or as far above or below it as its key belongs."""
        rows, places = self._rows, self._index
        while index:
            parent = (index - 1) // 2
            if rows[parent][0] <= row[0]:
                break
            rows[index] = rows[parent]
            places[rows[index][1]] = index
            index = parent
        while (child := 2 * index + 1) < len(rows):
            if child + 1 < len(rows) and rows[child + 1][0] < rows[child][0]:
                child += 1
            if row[0] <= rows[child][0]:
                break
            rows[index] = rows[child]
            places[rows[index][1]] = index
            index = child
        rows[index] = row
        places[row[1]] = index
