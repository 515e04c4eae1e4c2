"""Who would have to leave one tier: of the client that has most waiting there, the one that came last. Pure.

Only those that have had no turn yet are here: what has been computed for the others would be lost.
"""

from mlxsup.supervisor.scheduling.indexed_heap import IndexedHeap
from mlxsup.supervisor.scheduling.order import Ticket


class LastIn:
    """Requests are known by their ids."""

    def __init__(self) -> None:
        self._of: dict[str, IndexedHeap[int]] = {}
        self._crowds: IndexedHeap[str] = IndexedHeap()

    def put(self, ticket: Ticket) -> None:
        line = self._of.setdefault(ticket.client, IndexedHeap())
        line.put(ticket.id, (-ticket.arrived_s, -ticket.id))
        self._count(ticket.client, line)

    def discard(self, ticket: Ticket) -> None:
        line = self._of.get(ticket.client)
        if line is not None and line.discard(ticket.id):
            self._count(ticket.client, line)

    def first(self) -> int | None:
        crowd = self._crowds.first()
        if crowd is None:
            return None
        row = self._of[crowd[1]].first()
        return None if row is None else row[1]

    def is_crowded_for(self, client: str) -> bool:
        """Whether one has so many more here than this client that it still has no fewer with one less."""
        crowd = self._crowds.first()
        if crowd is None:
            return False
        return len(self._of[crowd[1]]) >= len(self._of.get(client, ())) + 2

    def _count(self, client: str, line: IndexedHeap[int]) -> None:
        """Of clients with as many the one whose last request came last."""
        last = line.first()
        if last is None:
            del self._of[client]
            self._crowds.discard(client)
        else:
            self._crowds.put(client, (-len(line), *last[0]))
