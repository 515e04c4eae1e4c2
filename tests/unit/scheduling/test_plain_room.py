"""The waiting room against a plain one that looks at every request for each decision, by the same rules."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mlxsup.protocol.generation import Priority
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.scheduling.waiting_room import Overfull
from tests.fakes.rooms import AGE_STEP_S, make_room, request_of

TIERS = list(Priority)
BOUNDS = {"requests_max": 12, "tier_requests_max": 8, "client_requests_max": 6}


class PlainClient:
    """In one tier. It goes in `round` with `credit` left."""

    def __init__(self, order: tuple[int, int], round: int, credit: int) -> None:
        self.order = order
        self.round = round
        self.credit = credit


class PlainRoom:
    def __init__(self, quantum: int, *, shortest_first: bool) -> None:
        self.quantum = quantum
        self.shortest_first = shortest_first
        self.now_s = 0.0
        self.returned: list[GenerationRequest] = []
        self.waiting: dict[int, GenerationRequest] = {}
        self.costs: dict[int, int] = {}
        self.begun: set[int] = set()
        # As of the last look.
        self.seen_in: dict[int, int] = {}
        self.rounds = [0] * 4
        self.clients: list[dict[str, PlainClient]] = [{} for _ in TIERS]
        self.came = 0

    def everybody(self) -> list[GenerationRequest]:
        return [*self.returned, *self.waiting.values()]

    # The rules about one request.

    def steps(self, request: GenerationRequest) -> int:
        return int((self.now_s - request.marks.accepted_s) // AGE_STEP_S)

    def tier(self, request: GenerationRequest) -> int:
        return max(0, TIERS.index(request.priority) - self.steps(request))

    def key(self, request: GenerationRequest) -> tuple[float, ...]:
        arrived_s = request.marks.accepted_s
        patient_until_s = arrived_s + 4 * AGE_STEP_S
        if self.now_s >= patient_until_s:
            return (0, arrived_s, request.id)
        dated = request.deadline_s is not None and request.deadline_s < patient_until_s
        if self.shortest_first and not dated:
            return (2, self.costs[request.id], arrived_s, request.id)
        return (1, request.deadline_s or 0.0 if dated else patient_until_s, arrived_s, request.id)

    # The rules about clients.

    def look(self, now_s: float) -> None:
        """Who has aged moves, in the order in which they did."""
        self.now_s = now_s
        moved = [request for request in self.waiting.values() if self.changed_s(request) is not None]
        for request in sorted(moved, key=lambda request: (self.changed_s(request), request.id)):
            self.leave(request)
            self.enter(request)
        for tier in TIERS:
            self.take_along(tier)

    def take_along(self, tier: Priority) -> None:
        """The first of each client comes as far as the oldest that came with the same tier."""
        equals = [request for request in self.waiting.values() if request.priority is tier]
        level = min((self.tier(request) for request in equals), default=0)
        for client in sorted({request.client for request in equals}):
            own = [request for request in equals if request.client == client]
            if all(self.tier_seen(request) > level for request in own):
                first = min(own, key=lambda request: (self.tier_seen(request), self.key(request)))
                self.leave(first)
                self.enter(first, TIERS.index(tier) - level)

    def changed_s(self, request: GenerationRequest) -> float | None:
        """When it first became more urgent since the last look, or lost its patience."""
        seen = self.seen_in[request.id]
        rank = TIERS.index(request.priority)
        at = seen + 1 if seen < rank else 4
        return request.marks.accepted_s + at * AGE_STEP_S if seen < at <= self.steps(request) else None

    def enter(self, request: GenerationRequest, aged: int = 0) -> None:
        rank, steps = TIERS.index(request.priority), min(4, self.steps(request))
        self.seen_in[request.id] = steps if steps == 4 else max(aged, min(steps, rank))
        tier = self.tier_seen(request)
        if request.client not in self.clients[tier]:
            self.came += 1
            round = self.rounds[tier] + 1
            self.clients[tier][request.client] = PlainClient((-round, self.came), round, self.quantum)
        self.waiting[request.id] = request

    def leave(self, request: GenerationRequest) -> None:
        """From where it was at the last look."""
        tier = self.tier_seen(request)
        del self.waiting[request.id]
        here = [other for other in self.waiting.values() if self.tier_seen(other) == tier]
        if not here:
            self.clients[tier].clear()
            self.rounds[tier] = 0
        elif all(other.client != request.client for other in here):
            client = self.clients[tier][request.client]
            owes = (client.round - self.rounds[tier]) * self.quantum - client.credit
            if client.round <= self.rounds[tier] or owes <= 0:
                del self.clients[tier][request.client]

    def tier_seen(self, request: GenerationRequest) -> int:
        return max(0, TIERS.index(request.priority) - self.seen_in[request.id])

    def serve(self, request: GenerationRequest) -> None:
        tier = self.tier_seen(request)
        client = self.clients[tier][request.client]
        client.round = self.rounds[tier] = max(client.round, self.rounds[tier])
        client.credit -= self.costs[request.id]
        while client.credit <= 0:
            client.credit += self.quantum
            client.round += 1
        self.leave(request)
        waiting = {other.client for other in self.waiting.values() if self.tier_seen(other) == tier}
        for name, other in list(self.clients[tier].items()):
            if name not in waiting and other.round <= self.rounds[tier]:
                del self.clients[tier][name]

    # The rules about all.

    def first(self, tiers: list[Priority]) -> GenerationRequest | None:
        def turn(request: GenerationRequest) -> Any:
            tier = self.tier_seen(request)
            client = self.clients[tier][request.client]
            return (tier, client.round, client.order, self.key(request))

        return min(
            (request for request in self.waiting.values() if request.priority in tiers),
            key=turn,
            default=None,
        )

    def last_behind(self, tier: int) -> GenerationRequest | None:
        fresh = self.fresh()
        least = max((self.tier_seen(request) for request in fresh), default=-1)
        if least <= tier:
            return None
        return self.last_in([request for request in fresh if self.tier_seen(request) == least])

    def last_of_a_crowd(self, tier: int, client: str) -> GenerationRequest | None:
        fresh = [request for request in self.fresh() if self.tier_seen(request) == tier]
        last = self.last_in(fresh) if fresh else None
        if last is None or self.now_s - last.marks.accepted_s >= 3 * AGE_STEP_S:
            return None
        crowd, own = (sum(request.client == name for request in fresh) for name in (last.client, client))
        return last if crowd - 1 > own else None

    def fresh(self) -> list[GenerationRequest]:
        return [request for request in self.waiting.values() if request.id not in self.begun]

    def last_in(self, fresh: list[GenerationRequest]) -> GenerationRequest:
        newest = {
            request.client: max(_age(other) for other in fresh if other.client == request.client)
            for request in fresh
        }

        def crowd(request: GenerationRequest) -> Any:
            return (
                sum(other.client == request.client for other in fresh),
                newest[request.client],
                _age(request),
            )

        return max(fresh, key=crowd)


def _age(request: GenerationRequest) -> tuple[float, int]:
    return (request.marks.accepted_s, request.id)


class SameAsThePlainRoom(RuleBasedStateMachine):
    @initialize(quantum=st.integers(1, 12), shortest_first=st.booleans())
    def begin(self, quantum: int, shortest_first: bool) -> None:
        self.room = make_room(quantum_tokens=quantum, shortest_first=shortest_first, **BOUNDS)
        self.plain = PlainRoom(quantum, shortest_first=shortest_first)
        self.now_s = 0.0
        self.away: list[GenerationRequest] = []
        self.inside: set[int] = set()

    def out(self, request: GenerationRequest) -> None:
        self.inside.remove(request.id)

    @rule(steps=st.integers(1, 40))
    def time_passes(self, steps: int) -> None:
        self.now_s += steps

    @rule(
        client=st.sampled_from("abc"),
        tier=st.sampled_from(TIERS),
        cost=st.integers(1, 30),
        left_s=st.none() | st.integers(1, 80),
    )
    def one_comes(self, client: str, tier: Priority, cost: int, left_s: int | None) -> None:
        deadline_s = None if left_s is None else self.now_s + left_s
        request = request_of(client, tier, at_s=self.now_s, deadline_s=deadline_s)
        plain, everybody = self.plain, self.plain.everybody()
        full = {
            "client": sum(other.client == client for other in everybody) >= BOUNDS["client_requests_max"],
            "tier": sum(other.priority is tier for other in everybody) >= BOUNDS["tier_requests_max"],
            "model": len(everybody) >= BOUNDS["requests_max"],
        }
        which = next((which for which, is_full in full.items() if is_full), None)
        leaves = None
        if which == "model":
            plain.look(self.now_s)
            leaves = plain.last_behind(TIERS.index(tier)) or plain.last_of_a_crowd(TIERS.index(tier), client)
        if which is not None and leaves is None:
            with pytest.raises(Overfull) as overfull:
                self.room.put(request, cost, self.now_s)
            assert overfull.value.which == which
            return
        assert self.room.put(request, cost, self.now_s) is leaves
        if leaves is not None:
            plain.leave(leaves)
            self.out(leaves)
        plain.now_s = self.now_s
        plain.costs[request.id] = cost
        plain.enter(request)
        self.inside.add(request.id)

    @rule()
    def the_first_gets_a_place(self) -> None:
        plain = self.plain
        if plain.returned:
            expected: GenerationRequest | None = plain.returned.pop(0)
        else:
            plain.look(self.now_s)
            expected = plain.first(TIERS)
            if expected is not None:
                plain.serve(expected)
        assert self.room.peek(self.now_s) is expected
        assert self.room.pop(self.now_s) is expected
        if expected is not None:
            self.out(expected)
            self.away.append(expected)

    @rule(tier=st.sampled_from(TIERS))
    def the_first_of_a_tier_gets_a_place(self, tier: Priority) -> None:
        # Both as of one moment, as whoever asks has looked for the first of all before.
        self.plain.look(self.now_s)
        self.room.ahead(tier, "a", self.now_s)
        expected = self.plain.first([tier])
        first = self.room.peek_tier(tier)
        assert first is expected
        if first is not None:
            self.plain.serve(first)
            self.room.take(first)
            self.out(first)
            self.away.append(first)

    @precondition(lambda self: self.away)
    @rule(data=st.data(), where=st.sampled_from(["back", "behind", "again"]), cost=st.integers(1, 30))
    def one_that_had_a_place_waits_again(self, data: st.DataObject, where: str, cost: int) -> None:
        request = self.away.pop(data.draw(st.integers(0, len(self.away) - 1)))
        self.inside.add(request.id)
        if where == "back":
            self.room.put_back(request)
            self.plain.returned.insert(0, request)
        elif where == "behind":
            self.room.put_behind(request)
            self.plain.returned.append(request)
        else:
            # A room that is told no moment takes it for one that has just come, until somebody looks.
            self.plain.look(self.now_s)
            self.room.peek(self.now_s)
            self.room.ahead(TIERS[0], "a", self.now_s)
            self.plain.costs[request.id] = cost
            self.plain.begun.add(request.id)
            self.plain.now_s = request.marks.accepted_s
            self.plain.enter(request)
            self.plain.look(self.now_s)
            self.room.put_again(request, cost)
            self.room.ahead(TIERS[0], "a", self.now_s)

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def one_is_cancelled(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.plain.everybody()))
        assert self.room.remove(request)
        assert not self.room.remove(request)
        self.out(request)
        if request in self.plain.returned:
            self.plain.returned.remove(request)
        else:
            self.plain.leave(request)

    @rule()
    def the_worker_drains(self) -> None:
        begun = [request for request in self.plain.waiting.values() if request.id in self.plain.begun]
        for request in sorted(begun, key=lambda request: (TIERS.index(request.priority), *_age(request))):
            self.plain.leave(request)
            self.plain.returned.append(request)
        self.room.recall()

    @invariant()
    def who_waits_is_who_should_wait(self) -> None:
        everybody = self.plain.everybody()
        assert len(self.room) == len(everybody)
        assert sorted(request.id for request in self.room) == sorted(self.inside)
        assert list(self.room)[: self.room.returned] == self.plain.returned
        assert self.room.least_urgent_newest() is self.plain.last_behind(-1)
        assert self.room.counts() == {tier: sum(r.priority is tier for r in everybody) for tier in TIERS}
        assert self.room.clients() == {
            client: sum(r.client == client for r in everybody) for client in {r.client for r in everybody}
        }


TestSameAsThePlainRoom = SameAsThePlainRoom.TestCase
TestSameAsThePlainRoom.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
