"""Clients that wait in one tier take turns, counted in tokens: deficit round robin. Pure.

Rule 1: in each round a client's credit grows by a quantum, and it goes while it has credit; what the last one cost more
than that is a debt, for which it sits out as many rounds as the debt has quanta. A round in which nobody goes takes no time.
Rule 2: so while two clients wait, what they get differs by at most one quantum and one request of each, in tokens.
Rule 3: who comes joins the next round, before those that were there; who has nothing waiting any more loses its credit,
and keeps its debt until the rounds have come so far, or nobody waits; of more than 4096 such debts the least is forgiven.
Rule 4: who goes out of turn is charged for it. The round is then that of its turn, and the others don't make up for what
they were passed by.

After Shreedhar and Varghese (1995), but charged afterwards: which request a client's next one will be, nobody knows
before.
"""

from collections.abc import Iterable
from itertools import count

from mlxsup.supervisor.scheduling.indexed_heap import IndexedHeap, Key
from mlxsup.supervisor.scheduling.order import TIERS, Ticket

_DEBTORS_MAX = 4096


class _Client:
    """`round` is the next in which it goes, with `credit_tokens` from 1 to a quantum."""

    __slots__ = ("credit_tokens", "joined", "lines", "name", "number", "requests", "round", "tokens")

    def __init__(self, name: str, number: int, round: int, credit_tokens: int) -> None:
        self.name = name
        self.number = number
        self.joined = self.round = round
        self.credit_tokens = credit_tokens
        # By the rank of the tier that they came with; those without any are left out.
        self.lines: dict[int, IndexedHeap[int]] = {}
        self.requests = 0
        self.tokens = 0

    @property
    def turn(self) -> Key:
        return (self.round, -self.joined, self.number)

    def first(self) -> int:
        return min(row for line in self.lines.values() if (row := line.first()) is not None)[1]


class FairShare:
    """Requests are known by their ids. `tokens` is the cost of all that wait here."""

    def __init__(self, quantum_tokens: int) -> None:
        self._quantum_tokens = quantum_tokens
        self.tokens = 0
        self._requests = 0
        self._forget_all()

    def __len__(self) -> int:
        return self._requests

    def _forget_all(self) -> None:
        self._round = 0
        self._numbers = count()
        self._clients: dict[str, _Client] = {}
        self._waiting = 0
        # Whose turn it is among those with requests that came with a tier of that rank.
        self._turns = tuple(IndexedHeap[str]() for _ in TIERS)
        # Who has nothing waiting, by the round in which its debt is settled.
        self._debtors: IndexedHeap[str] = IndexedHeap()

    def put(self, ticket: Ticket, key: Key) -> None:
        """`key` orders it among its client's."""
        client = self._clients.get(ticket.client)
        if client is None:
            client = _Client(ticket.client, next(self._numbers), self._round + 1, self._quantum_tokens)
            self._clients[client.name] = client
        if not client.requests:
            self._debtors.discard(client.name)
            self._waiting += 1
        line = client.lines.get(ticket.rank)
        if line is None:
            line = client.lines[ticket.rank] = IndexedHeap()
            self._turns[ticket.rank].put(client.name, client.turn)
        line.put(ticket.id, key)
        client.requests += 1
        client.tokens += ticket.cost_tokens
        self._requests += 1
        self.tokens += ticket.cost_tokens

    def first(self) -> int | None:
        """Whose turn it is."""
        client = self._next(self._turns)
        return None if client is None else client.first()

    def first_of(self, rank: int) -> int | None:
        """Whose turn it would be if only those that came with that tier waited."""
        client = self._next((self._turns[rank],))
        if client is None:
            return None
        row = client.lines[rank].first()
        return None if row is None else row[1]

    def clients_of(self, rank: int) -> list[str]:
        """Who has requests here that came with that tier."""
        return [client.name for client in self._clients.values() if rank in client.lines]

    def first_of_client(self, name: str, rank: int) -> int | None:
        """Of its requests that came with that tier."""
        client = self._clients.get(name)
        line = None if client is None else client.lines.get(rank)
        row = None if line is None else line.first()
        return None if row is None else row[1]

    def discard(self, ticket: Ticket) -> None:
        client = self._clients[ticket.client]
        line = client.lines[ticket.rank]
        line.discard(ticket.id)
        if not line:
            del client.lines[ticket.rank]
            self._turns[ticket.rank].discard(client.name)
        client.requests -= 1
        client.tokens -= ticket.cost_tokens
        self._requests -= 1
        self.tokens -= ticket.cost_tokens
        if not client.requests:
            self._go(client)

    def serve(self, ticket: Ticket) -> None:
        """Take it out, at its client's expense."""
        client = self._clients[ticket.client]
        self._round = client.round = max(self._round, client.round)
        client.credit_tokens -= ticket.cost_tokens
        if client.credit_tokens <= 0:
            rounds = 1 + -client.credit_tokens // self._quantum_tokens
            client.round += rounds
            client.credit_tokens += rounds * self._quantum_tokens
        for rank in client.lines:
            self._turns[rank].put(client.name, client.turn)
        self.discard(ticket)
        self._forget_settled()

    def ahead(self, name: str) -> int:
        """Tokens that would go before a newcomer of that client: all of its own, and each other's share meanwhile."""
        client = self._clients.get(name)
        own = debt = 0
        if client is not None:
            own = client.tokens
            debt = (client.round - self._round) * self._quantum_tokens - client.credit_tokens
        others = self._waiting - (own > 0)
        if not others:
            return own
        share = own + max(0, debt) + self._quantum_tokens + self.tokens // self._requests
        return own + min(self.tokens - own, others * share)

    def _next(self, turns: Iterable[IndexedHeap[str]]) -> _Client | None:
        rows = [row for heap in turns if (row := heap.first()) is not None]
        return self._clients[min(rows)[1]] if rows else None

    def _go(self, client: _Client) -> None:
        """It has nothing waiting any more."""
        self._waiting -= 1
        if not self._waiting:
            self._forget_all()
        elif client.round > self._round + 1 or (
            client.round > self._round and client.credit_tokens < self._quantum_tokens
        ):
            self._debtors.put(client.name, client.turn)
            if len(self._debtors) > _DEBTORS_MAX:
                self._forget_first_debtor()
        else:
            del self._clients[client.name]

    def _forget_settled(self) -> None:
        while (row := self._debtors.first()) is not None and row[0][0] <= self._round:
            self._forget_first_debtor()

    def _forget_first_debtor(self) -> None:
        row = self._debtors.first()
        assert row is not None
        self._debtors.discard(row[1])
        del self._clients[row[1]]
