from collections import Counter, defaultdict, deque
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.scheduling.waiting_room import WaitingRoom
from tests.fakes.rooms import make_room, request_of

CLIENTS = "abcd"

QUANTA = st.integers(1, 40)
COSTS = st.integers(1, 100)


class Watched:
    """A room, all in one tier and at one moment, with what each client has got."""

    def __init__(self, quantum_tokens: int) -> None:
        self.room: WaitingRoom = make_room(quantum_tokens=quantum_tokens)
        self.waiting: dict[str, deque[GenerationRequest]] = {client: deque() for client in CLIENTS}
        self.got: Counter[str] = Counter()
        self.dearest: Counter[str] = Counter()
        self._costs: dict[int, int] = {}

    def put(self, client: str, cost: int) -> None:
        request = request_of(client)
        self._costs[request.id] = cost
        self.waiting[client].append(request)
        self.room.put(request, cost, 0.0)

    def remove(self, client: str) -> None:
        if self.waiting[client]:
            self.room.remove(self.waiting[client].pop())

    def pop(self) -> str | None:
        request = self.room.pop(0.0)
        if request is None:
            return None
        cost = self._costs[request.id]
        assert self.waiting[request.client].popleft() is request
        self.got[request.client] += cost
        self.dearest[request.client] = max(self.dearest[request.client], cost)
        return request.client


STEPS = st.lists(
    st.tuples(st.sampled_from(["pop", "pop", "put", "put", "remove"]), st.sampled_from(CLIENTS), COSTS)
)


@settings(deadline=None)
@given(QUANTA, st.lists(st.tuples(st.sampled_from(CLIENTS), COSTS), max_size=60), STEPS)
def test_what_two_clients_get_while_both_wait_differs_by_a_quantum_and_a_request_of_each_at_most(
    quantum: int, arrivals: list[tuple[str, int]], steps: list[tuple[str, str, int]]
) -> None:
    watched = Watched(quantum)
    for client, cost in arrivals:
        watched.put(client, cost)
    # For each two that wait: what the one had got more than the other, at the end of each decision since both did.
    leads: dict[tuple[str, str], list[int]] = defaultdict(list)
    for what, client, cost in [*steps, *[("pop", "", 0)] * len(arrivals)]:
        if what == "put":
            watched.put(client, cost)
        elif what == "remove":
            watched.remove(client)
        else:
            watched.pop()
        for one, other in combinations(CLIENTS, 2):
            lead = leads[one, other]
            lead.append(watched.got[one] - watched.got[other])
            allowed = quantum + watched.dearest[one] + watched.dearest[other]
            assert max(lead) - min(lead) <= allowed
            if not (watched.waiting[one] and watched.waiting[other]):
                lead.clear()


@settings(deadline=None)
@given(QUANTA, st.lists(COSTS, min_size=1, max_size=40), st.lists(COSTS, min_size=1, max_size=40))
def test_two_that_begin_together_have_got_the_same_within_a_quantum_and_one_request(
    quantum: int, costs_of_a: list[int], costs_of_b: list[int]
) -> None:
    watched = Watched(quantum)
    for client, costs in (("a", costs_of_a), ("b", costs_of_b)):
        for cost in costs:
            watched.put(client, cost)
    while watched.waiting["a"] and watched.waiting["b"]:
        watched.pop()
        allowed = quantum + max(watched.dearest.values())
        assert abs(watched.got["a"] - watched.got["b"]) <= allowed


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(1, 20))
def test_of_requests_of_one_quantum_each_clients_take_turns(of_a: int, of_b: int) -> None:
    watched = Watched(10)
    for client in "a" * of_a + "b" * of_b:
        watched.put(client, 10)
    served = "".join(watched.pop() or "" for _ in range(of_a + of_b))

    assert served[: 2 * min(of_a, of_b)] == "ab" * min(of_a, of_b)


@settings(deadline=None)
@given(QUANTA, st.integers(1, 30), COSTS)
def test_a_client_that_was_idle_has_no_more_coming_to_it_than_one_that_was_not(
    quantum: int, before: int, cost: int
) -> None:
    watched = Watched(quantum)
    for _ in range(before + 30):
        watched.put("a", cost)
    for _ in range(before):
        watched.pop()
    watched.got.clear()
    for _ in range(30):
        watched.put("b", cost)
    for _ in range(30):
        watched.pop()
        assert watched.got["b"] - watched.got["a"] <= quantum + 2 * cost


@settings(deadline=None)
@given(QUANTA, st.integers(1, 5), st.integers(6, 100))
def test_a_client_that_asks_for_one_dear_thing_after_another_gets_no_more_than_its_share(
    quantum: int, cheap: int, dear: int
) -> None:
    watched = Watched(quantum)
    for _ in range(150):
        watched.put("a", cheap)
    for _ in range(100):
        if not watched.waiting["b"]:
            watched.put("b", dear)
        watched.pop()
        assert watched.got["b"] - watched.got["a"] <= quantum + dear


def test_however_many_clients_come_one_after_another_the_others_have_their_turns() -> None:
    watched = Watched(5)
    for _ in range(3):
        watched.put("a", 5)
    served = []
    for newcomer in range(12):
        request = request_of(f"new {newcomer}")
        watched.room.put(request, 5, 0.0)
        first = watched.room.pop(0.0)
        assert first is not None
        served.append(first.client)

    # In each round those go first who came during the round before.
    assert [index for index, client in enumerate(served) if client == "a"] == [0, 4, 8]


def test_when_nobody_waits_any_more_debts_are_forgotten() -> None:
    watched = Watched(1)
    watched.put("a", 1000)
    assert watched.pop() == "a"
    watched.put("a", 1)
    watched.put("b", 1)
    watched.put("b", 1)

    assert [watched.pop() for _ in range(3)] == ["a", "b", "b"]


def test_clients_that_are_gone_leave_nothing_behind_once_their_debts_are_settled() -> None:
    watched = Watched(10)
    share = watched.room._shares[2]
    for _ in range(300):
        watched.put("a", 10)
    for number in range(100):
        request = request_of(f"once {number}")
        watched.room.put(request, 50, 0.0)
        cancelled = request_of(f"never {number}")
        watched.room.put(cancelled, 50, 0.0)
        watched.room.remove(cancelled)
        watched.room.pop(0.0)
        watched.room.pop(0.0)
        assert len(share._clients) < 10
    while len(watched.room) > 1:
        watched.room.pop(0.0)
    assert len(share._clients) == 1
