"""Requests that wait for a place in a model's batch: the order in which they get one, and how many may wait. Pure.

Rule 1: who had its turn and lost it with its worker goes first. Rule 2: then the most urgent tier goes, strictly; waiting
makes a request more urgent (`order`), and with it the first of each other client that came with the same tier: that a
client has too many, which then wait, gives it no more than the others. Rule 3: in a tier clients share by tokens (`fair_share`), each client's requests
going by their deadlines, and without any in order of arrival (`order`). Rule 4: never do more than `requests_max` wait,
`tier_requests_max` of those that came with one tier, `client_requests_max` of one client; only who was accepted before is
taken back beyond that. Rule 5: when only the first of these is reached, a newcomer displaces one that has had no turn yet:
from the least urgent tier behind its own, or else the last of a client that has more in its tier than its own client
would have (as the longest queue drops: Suter and others, 1998). Rule 6: all that was put in comes out once: by `pop`, `take`, `remove`, or
displaced.

So nobody starves, with T = 4 tiers. Once a request has waited (T - 1) times `age_step_s` it is in the first tier: nobody goes
before it for being more urgent, and nobody displaces it. From then on no other client gets more than its own client
does and one quantum and one request of each, in tokens. Once it has waited T times `age_step_s`, none of its own client
that came later goes before it. What `take` gives out of turn is not counted in that.

A decision's cost grows with the logarithm of those who wait. Besides, each is moved at most T times, at the decision that
finds it aged or takes it along.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Literal

import msgspec

from mlxsup.protocol.generation import Priority
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.scheduling.fair_share import FairShare
from mlxsup.supervisor.scheduling.indexed_heap import IndexedHeap
from mlxsup.supervisor.scheduling.last_in import LastIn
from mlxsup.supervisor.scheduling.order import RANK, TIERS, Order, Ticket


class RoomBounds(msgspec.Struct, frozen=True, kw_only=True):
    requests_max: int
    tier_requests_max: int
    client_requests_max: int


class Overfull(Exception):  # noqa: N818  (it is a state, and no fault)
    """A bound refuses a request."""

    def __init__(self, which: Literal["model", "tier", "client"], bound: int) -> None:
        super().__init__(f"{bound} requests of this {which} wait")
        self.which = which
        self.bound = bound


class WaitingRoom:
    """`now_s`, here and in the requests, is a moment of the monotonic clock; costs are in tokens, from 1."""

    def __init__(
        self, bounds: RoomBounds, *, age_step_s: float, quantum_tokens: int, shortest_first: bool
    ) -> None:
        self._bounds = bounds
        self._order = Order(age_step_s=age_step_s, shortest_first=shortest_first)
        # With what they will cost; the first goes first.
        self._returned: OrderedDict[int, tuple[GenerationRequest, int]] = OrderedDict()
        self._returned_tokens = 0
        self._tickets: dict[int, Ticket] = {}
        self._shares = tuple(FairShare(quantum_tokens) for _ in TIERS)
        self._last_in = tuple(LastIn() for _ in TIERS)
        # By the moment when waiting changes something.
        self._ageing: IndexedHeap[int] = IndexedHeap()
        self._begun: dict[int, Ticket] = {}
        # By the tiers that requests came with: these by arrival; where the first of each client is taken along to; and
        # whose first one may have changed since, of those who have any.
        self._arrivals: tuple[IndexedHeap[int], ...] = tuple(IndexedHeap() for _ in TIERS)
        self._levels = list(range(len(TIERS)))
        self._changed: tuple[set[str], ...] = tuple(set() for _ in TIERS)
        self._of_tier = dict.fromkeys(TIERS, 0)
        self._of_client: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._returned) + len(self._tickets)

    def __iter__(self) -> Iterator[GenerationRequest]:
        """Those that were put back, the first first; then the others, in no order."""
        yield from (request for request, _ in self._returned.values())
        yield from (ticket.request for ticket in self._tickets.values())

    @property
    def returned(self) -> int:
        """So many were put back, and go first."""
        return len(self._returned)

    @property
    def begun(self) -> int:
        """So many have had a turn, and wait for another one."""
        return len(self._returned) + len(self._begun)

    def counts(self) -> dict[Priority, int]:
        """How many wait of those that came with each tier."""
        return dict(self._of_tier)

    def clients(self) -> dict[str, int]:
        """How many wait of each client that has any."""
        return dict(self._of_client)

    def count_of(self, client: str) -> int:
        return self._of_client.get(client, 0)

    # In.

    def put(self, request: GenerationRequest, cost_tokens: int, now_s: float) -> GenerationRequest | None:
        """Take in a newcomer; the one that it displaces, if it does, which the caller ends.

        Raises:
            Overfull: a bound refuses it, and it displaces nobody.
        """
        bounds = self._bounds
        if self._of_client.get(request.client, 0) >= bounds.client_requests_max:
            raise Overfull("client", bounds.client_requests_max)
        if self._of_tier[request.priority] >= bounds.tier_requests_max:
            raise Overfull("tier", bounds.tier_requests_max)
        ticket = Ticket(request, cost_tokens, begun=False)
        displaced = None
        if len(self) >= bounds.requests_max:
            self._age(now_s)
            displaced = self._last_in_behind(ticket.tier) or self._last_in_of_a_crowd(ticket, now_s)
            if displaced is None:
                raise Overfull("model", bounds.requests_max)
            self.remove(displaced)
        self._admit(ticket)
        return displaced

    def put_back(self, request: GenerationRequest, cost_tokens: int = 0) -> None:
        """To the head of all. It was accepted and charged before: no bound refuses it, and nobody is charged again."""
        self.put_behind(request, cost_tokens)
        self._returned.move_to_end(request.id, last=False)

    def put_behind(self, request: GenerationRequest, cost_tokens: int = 0) -> None:
        """Behind all that were put back before, and ahead of the others. The cost is for `ahead` only."""
        assert request.id not in self._returned
        assert request.id not in self._tickets
        self._returned[request.id] = (request, cost_tokens)
        self._returned_tokens += cost_tokens
        self._count(request, 1)

    def put_again(self, request: GenerationRequest, cost_tokens: int) -> None:
        """It gave way to a more urgent one, and goes on when its turn comes, as one of its arrival. No bound refuses it."""
        ticket = Ticket(request, cost_tokens, begun=True)
        self._begun[ticket.id] = ticket
        self._admit(ticket)

    def recall(self) -> None:
        """All that gave way go behind those that were put back: the most urgent first, then by arrival."""
        begun = sorted(self._begun.values(), key=lambda ticket: (ticket.rank, ticket.arrived_s, ticket.id))
        for ticket in begun:
            self.remove(ticket.request)
            self.put_behind(ticket.request, ticket.cost_tokens)

    # Out.

    def peek(self, now_s: float) -> GenerationRequest | None:
        """Whom `pop` would give."""
        if self._returned:
            return next(iter(self._returned.values()))[0]
        self._age(now_s)
        for share in self._shares:
            first = share.first()
            if first is not None:
                return self._tickets[first].request
        return None

    def pop(self, now_s: float) -> GenerationRequest | None:
        """Whose turn it is, at its client's expense."""
        request = self.peek(now_s)
        if request is not None:
            self.take(request)
        return request

    def peek_tier(self, tier: Priority) -> GenerationRequest | None:
        """Whose turn it would be if only those waited that came with that tier; not one that was put back."""
        rank = RANK[tier]
        for share in self._shares[: rank + 1]:
            first = share.first_of(rank)
            if first is not None:
                return self._tickets[first].request
        return None

    def take(self, request: GenerationRequest) -> None:
        """Out, whatever waits before it, at its client's expense."""
        ticket = self._tickets.get(request.id)
        if ticket is None:
            taken = self._remove_returned(request)
            assert taken, "it waits here"
            return
        self._shares[ticket.tier].serve(ticket)
        self._leave(ticket)

    def remove(self, request: GenerationRequest) -> bool:
        """Out, at nobody's expense; whether it was waiting here."""
        ticket = self._tickets.get(request.id)
        if ticket is None:
            return self._remove_returned(request)
        self._shares[ticket.tier].discard(ticket)
        self._leave(ticket)
        return True

    # What is known of those that wait.

    def least_urgent_newest(self) -> GenerationRequest | None:
        """Who is to leave first when there are too many: of the least urgent tier, of those that have had no turn yet."""
        return self._last_in_behind(-1)

    def ahead(self, request_tier: Priority, client: str, now_s: float) -> int:
        """Tokens that would go before one that came now: an upper estimate, unless more urgent ones come later."""
        self._age(now_s)
        rank = RANK[request_tier]
        level = self._levels[rank]
        tier = rank if self._has_one(client, rank, level) else level
        more_urgent = sum(share.tokens for share in self._shares[:tier])
        return self._returned_tokens + more_urgent + self._shares[tier].ahead(client)

    def _last_in_behind(self, tier: int) -> GenerationRequest | None:
        for last_in in reversed(self._last_in[tier + 1 :]):
            first = last_in.first()
            if first is not None:
                return self._tickets[first].request
        return None

    def _last_in_of_a_crowd(self, newcomer: Ticket, now_s: float) -> GenerationRequest | None:
        last_in = self._last_in[newcomer.tier]
        first = last_in.first() if last_in.is_crowded_for(newcomer.client) else None
        if first is None or self._order.has_come_up(self._tickets[first], now_s):
            return None
        return self._tickets[first].request

    # How it is done.

    def _age(self, now_s: float) -> None:
        while (row := self._ageing.first()) is not None and row[0][0] <= now_s:
            ticket = self._tickets[row[1]]
            self._withdraw(ticket)
            self._order.age(ticket, now_s)
            self._enter(ticket)
        for rank in range(1, len(TIERS)):
            self._take_along(rank, now_s)

    def _take_along(self, rank: int, now_s: float) -> None:
        """The first of each client goes to where the oldest that came with that tier has waited its way to."""
        changed = self._changed[rank]
        oldest = self._arrivals[rank].first()
        level = rank if oldest is None else self._order.waited_to(self._tickets[oldest[1]], now_s)
        if level < self._levels[rank]:
            for share in self._shares[level + 1 : rank + 1]:
                changed.update(share.clients_of(rank))
        self._levels[rank] = level
        if level < rank:
            for client in sorted(changed):
                self._take_client_along(client, rank, level)
        changed.clear()

    def _take_client_along(self, client: str, rank: int, level: int) -> None:
        if self._has_one(client, rank, level):
            return
        for share in self._shares[level + 1 : rank + 1]:
            first = share.first_of_client(client, rank)
            if first is not None:
                ticket = self._tickets[first]
                self._withdraw(ticket)
                ticket.aged = rank - level
                self._enter(ticket)
                return

    def _has_one(self, client: str, rank: int, level: int) -> bool:
        """Of those that came with one tier, in that of the other rank or in a more urgent one."""
        return any(share.first_of_client(client, rank) is not None for share in self._shares[: level + 1])

    def _withdraw(self, ticket: Ticket) -> None:
        """To enter again as something else."""
        self._shares[ticket.tier].discard(ticket)
        self._last_in[ticket.tier].discard(ticket)

    def _admit(self, ticket: Ticket) -> None:
        assert ticket.id not in self._returned
        assert ticket.id not in self._tickets
        self._tickets[ticket.id] = ticket
        self._count(ticket.request, 1)
        self._arrivals[ticket.rank].put(ticket.id, (ticket.arrived_s, ticket.id))
        self._changed[ticket.rank].add(ticket.client)
        self._enter(ticket)

    def _enter(self, ticket: Ticket) -> None:
        self._shares[ticket.tier].put(ticket, self._order.key(ticket))
        if not ticket.begun:
            self._last_in[ticket.tier].put(ticket)
        change_s = self._order.next_change_s(ticket)
        if change_s is None:
            self._ageing.discard(ticket.id)
        else:
            self._ageing.put(ticket.id, (change_s, ticket.id))

    def _leave(self, ticket: Ticket) -> None:
        self._last_in[ticket.tier].discard(ticket)
        self._ageing.discard(ticket.id)
        self._begun.pop(ticket.id, None)
        self._arrivals[ticket.rank].discard(ticket.id)
        self._changed[ticket.rank].add(ticket.client)
        del self._tickets[ticket.id]
        self._count(ticket.request, -1)

    def _remove_returned(self, request: GenerationRequest) -> bool:
        row = self._returned.pop(request.id, None)
        if row is None:
            return False
        self._returned_tokens -= row[1]
        self._count(request, -1)
        return True

    def _count(self, request: GenerationRequest, by: int) -> None:
        self._of_tier[request.priority] += by
        of_client = self._of_client.get(request.client, 0) + by
        if of_client:
            self._of_client[request.client] = of_client
        else:
            del self._of_client[request.client]
            for changed in self._changed:
                changed.discard(request.client)
