"""The bound that `waiting_room` publishes, against floods of newer, more urgent and cheaper requests."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxsup.protocol.generation import Priority
from mlxsup.supervisor.generation.request import GenerationRequest
from tests.fakes.rooms import AGE_STEP_S, make_room, request_of

TIERS = list(Priority)
FIRST_TIER_S = (len(TIERS) - 1) * AGE_STEP_S
PATIENCE_S = len(TIERS) * AGE_STEP_S

Arrival = tuple[str, Priority, int, int | None]
ARRIVAL = st.tuples(
    st.sampled_from(["victim", "a", "b", "c"]),
    st.sampled_from(TIERS),
    st.integers(1, 60),
    st.none() | st.integers(1, 100),
)
# How long it is until the next decision, and who comes meanwhile.
FLOOD = st.lists(st.tuples(st.integers(0, 9), st.lists(ARRIVAL, max_size=4)), min_size=1, max_size=30)


class Siege:
    """One request waits; others come, more of them with each round of the flood than get a place."""

    def __init__(
        self, quantum_tokens: int, victims_tier: Priority, *, shortest_first: bool, requests_max: int
    ) -> None:
        self.room = make_room(
            quantum_tokens=quantum_tokens, shortest_first=shortest_first, requests_max=requests_max
        )
        self.quantum_tokens = quantum_tokens
        self.now_s = 0.0
        self.victim = request_of("victim", victims_tier)
        self.costs: dict[int, int] = {}
        self.got: Counter[str] = Counter()
        self.dearest: Counter[str] = Counter()
        # To which tier each may have been taken along.
        self.taken_to: dict[int, int] = {}

    def put(self, request: GenerationRequest, cost: int) -> None:
        if len(self.room) >= 10_000:
            return
        self.costs[request.id] = cost
        displaced = self.room.put(request, cost, self.now_s)
        assert displaced is not self.victim

    def come(self, arrivals: list[Arrival]) -> None:
        for client, tier, cost, left_s in arrivals:
            deadline_s = None if left_s is None else self.now_s + left_s
            self.put(request_of(client, tier, at_s=self.now_s, deadline_s=deadline_s), cost)

    def tier_of(self, request: GenerationRequest) -> int:
        waited_s = self.now_s - request.marks.accepted_s
        return max(0, TIERS.index(request.priority) - int(waited_s // AGE_STEP_S))

    def take_along(self) -> None:
        """What waits may come as far as the oldest that came with the same tier."""
        waiting = list(self.room)
        levels = {
            tier: min((self.tier_of(request) for request in waiting if request.priority is tier), default=3)
            for tier in TIERS
        }
        for request in waiting:
            self.taken_to[request.id] = min(self.taken_to.get(request.id, 3), levels[request.priority])

    def own_before(self) -> int:
        """Tokens of its own client's requests that may go before it, once its patience has ended."""
        return sum(
            self.costs[request.id]
            for request in self.room
            if request.client == "victim" and request.marks.accepted_s <= 0.0 and request is not self.victim
        )

    def pop(self) -> GenerationRequest:
        """Raises AssertionError where the bound is broken."""
        self.take_along()
        served = self.room.pop(self.now_s)
        assert served is not None
        waited_s = self.now_s - self.victim.marks.accepted_s
        assert self.taken_to[served.id] <= self.tier_of(self.victim)
        if served is not self.victim and waited_s >= FIRST_TIER_S:
            cost, client = self.costs[served.id], served.client
            self.got[client] += cost
            self.dearest[client] = max(self.dearest[client], cost)
            for other in self.got.keys() - {"victim"}:
                allowed = self.quantum_tokens + self.dearest[other] + max(60, self.dearest["victim"])
                assert self.got[other] - self.got["victim"] <= allowed
            if client == "victim" and waited_s >= PATIENCE_S:
                assert served.marks.accepted_s <= self.victim.marks.accepted_s
        return served


@settings(deadline=None)
@given(
    st.integers(1, 80),
    st.sampled_from(TIERS),
    st.booleans(),
    st.lists(ARRIVAL, max_size=10),
    FLOOD,
)
def test_a_request_is_passed_by_no_more_than_was_published(
    quantum: int,
    victims_tier: Priority,
    shortest_first: bool,
    before: list[Arrival],
    flood: list[tuple[int, list[Arrival]]],
) -> None:
    siege = Siege(quantum, victims_tier, shortest_first=shortest_first, requests_max=1_000_000)
    siege.come(before)
    siege.put(siege.victim, 60)
    rounds = 0
    while siege.now_s < PATIENCE_S + 3 * AGE_STEP_S or rounds < 50:
        gap_s, arrivals = flood[rounds % len(flood)]
        rounds += 1
        siege.now_s += max(gap_s, 1)
        siege.come([*arrivals, *arrivals])
        if siege.room and siege.pop() is siege.victim:
            return
    # From here on the flood does not end, and what may go before it is counted.
    may_pass = siege.own_before()
    bound = may_pass + 3 * (may_pass + quantum + 2 * 60)
    passed = 0
    while True:
        siege.now_s += 1
        siege.come(flood[rounds % len(flood)][1])
        rounds += 1
        served = siege.pop()
        if served is siege.victim:
            return
        passed += siege.costs[served.id]
        assert passed <= bound


@pytest.mark.parametrize("shortest_first", [False, True])
def test_the_least_urgent_one_gets_its_place_however_many_urgent_ones_come_meanwhile(
    shortest_first: bool,
) -> None:
    siege = Siege(8, Priority.BACKGROUND, shortest_first=shortest_first, requests_max=1_000_000)
    siege.put(siege.victim, 60)
    served = None
    while served is not siege.victim:
        siege.now_s += 1
        hurried: list[Arrival] = [
            (client, Priority.INTERACTIVE, 8, 5) for client in ("victim", "a", "b", "c")
        ]
        siege.come([*hurried, *hurried])
        served = siege.pop()
        assert siege.now_s <= PATIENCE_S + 4
    assert siege.now_s >= FIRST_TIER_S


def test_one_that_is_in_the_first_tier_is_displaced_by_nobody() -> None:
    siege = Siege(8, Priority.BACKGROUND, shortest_first=False, requests_max=3)
    siege.put(siege.victim, 60)
    siege.now_s = FIRST_TIER_S
    urgent: list[Arrival] = [("a", Priority.INTERACTIVE, 8, None)]
    siege.come([("b", Priority.NORMAL, 8, None), *urgent])
    siege.come(urgent)

    assert siege.victim in list(siege.room)
    assert siege.room.counts()[Priority.NORMAL] == 0
