"""Which of one client's requests goes first, and how waiting makes a request more urgent. Pure.

Rule 1: there are T = 4 tiers, and a request's tier, at any moment, is the one it came with less one for each `age_step_s`
that it has waited, and at last the first; or it is taken along to a more urgent one (`waiting_room`). Rule 2: in a tier a client's requests go by their virtual deadline, which is
their own, but never later than their patience, T times `age_step_s` after their arrival: so those without a deadline go
in order of arrival. Rule 3: with `shortest_first` those with a deadline before the end of their patience go first, by it,
and then the others, the cheapest first. Rule 4: a request whose patience has ended goes before all of its client that
came later, whatever their deadlines and costs.
"""

from mlxsup.protocol.generation import Priority
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.scheduling.indexed_heap import Key

TIERS = tuple(Priority)
RANK = {tier: rank for rank, tier in enumerate(TIERS)}
"""0 is the most urgent."""


class Ticket:
    """A request that waits in a tier. `aged`: so many times `age_step_s` are seen to have passed, or count as passed since
    it was taken along; at most T.
    """

    __slots__ = ("aged", "arrived_s", "begun", "client", "cost_tokens", "deadline_s", "id", "rank", "request")

    def __init__(self, request: GenerationRequest, cost_tokens: int, *, begun: bool) -> None:
        self.request = request
        self.id = request.id
        self.client = request.client
        self.rank = RANK[request.priority]
        self.arrived_s = request.marks.accepted_s
        self.deadline_s = request.deadline_s
        self.cost_tokens = cost_tokens
        self.begun = begun
        self.aged = 0

    @property
    def tier(self) -> int:
        """The rank of the tier that it has come to."""
        return max(0, self.rank - self.aged)


class Order:
    def __init__(self, *, age_step_s: float, shortest_first: bool) -> None:
        self._age_step_s = age_step_s
        self._shortest_first = shortest_first

    def key(self, ticket: Ticket) -> Key:
        """The least of a client's in a tier goes first."""
        arrived_s, number = ticket.arrived_s, ticket.id
        if ticket.aged == len(TIERS):
            return (0, arrived_s, number, 0)
        patient_until_s = self._moment(ticket, len(TIERS))
        due_s = patient_until_s if ticket.deadline_s is None else min(ticket.deadline_s, patient_until_s)
        if self._shortest_first and due_s == patient_until_s:
            return (2, ticket.cost_tokens, arrived_s, number)
        return (1, due_s, arrived_s, number)

    def waited_to(self, ticket: Ticket, now_s: float) -> int:
        """The rank of the tier that it has come to by its own waiting."""
        aged = 0
        while aged < ticket.rank and self._moment(ticket, aged + 1) <= now_s:
            aged += 1
        return ticket.rank - aged

    def has_come_up(self, ticket: Ticket, now_s: float) -> bool:
        """Whether it has waited until it would be there with whichever tier it had come."""
        return self._moment(ticket, len(TIERS) - 1) <= now_s

    def next_change_s(self, ticket: Ticket) -> float | None:
        """When waiting next changes its tier or its key. None: no more."""
        aged = self._next_age(ticket)
        return None if aged is None else self._moment(ticket, aged)

    def age(self, ticket: Ticket, now_s: float) -> None:
        while (aged := self._next_age(ticket)) is not None and self._moment(ticket, aged) <= now_s:
            ticket.aged = aged

    def _next_age(self, ticket: Ticket) -> int | None:
        if ticket.aged < ticket.rank:
            return ticket.aged + 1
        return len(TIERS) if ticket.aged < len(TIERS) else None

    def _moment(self, ticket: Ticket, aged: int) -> float:
        return ticket.arrived_s + aged * self._age_step_s
