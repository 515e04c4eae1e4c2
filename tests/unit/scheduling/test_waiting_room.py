import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxsup.protocol.generation import Priority
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.scheduling.waiting_room import Overfull, WaitingRoom
from tests.fakes.rooms import AGE_STEP_S, drain, make_room, request_of

TIERS = list(Priority)
URGENT, HIGH, NORMAL, BACKGROUND = TIERS

ARRIVALS = st.lists(
    st.tuples(st.sampled_from(TIERS), st.sampled_from("abc"), st.integers(1, 30)), max_size=30
)


def fill(room: WaitingRoom, arrivals: list[tuple[Priority, str, int]]) -> list[GenerationRequest]:
    """All at the moment 0."""
    requests = []
    for priority, client, cost in arrivals:
        requests.append(request_of(client, priority))
        assert room.put(requests[-1], cost, 0.0) is None
    return requests


@given(ARRIVALS)
def test_a_more_urgent_tier_is_always_served_first(arrivals: list[tuple[Priority, str, int]]) -> None:
    room = make_room()
    requests = fill(room, arrivals)
    served = drain(room)
    tiers = [TIERS.index(request.priority) for request in served]

    assert tiers == sorted(tiers)
    assert sorted(request.id for request in served) == [request.id for request in requests]


@given(ARRIVALS, st.booleans())
def test_a_clients_requests_of_one_tier_are_served_in_order_of_arrival(
    arrivals: list[tuple[Priority, str, int]], shortest_first: bool
) -> None:
    room = make_room(shortest_first=shortest_first)
    fill(room, [(priority, client, 5) for priority, client, _ in arrivals])
    served = drain(room)

    for key in {(request.priority, request.client) for request in served}:
        of_key = [request.id for request in served if (request.priority, request.client) == key]
        assert of_key == sorted(of_key)


@given(st.lists(st.tuples(st.integers(0, 50), st.none() | st.integers(1, 100)), max_size=20))
def test_a_clients_requests_are_served_by_deadline_and_without_one_by_the_end_of_their_patience(
    arrivals: list[tuple[int, int | None]],
) -> None:
    room = make_room()
    now_s = float(max((at_s for at_s, _ in arrivals), default=0))
    due: dict[int, tuple[float, int, int]] = {}
    for at_s, left_s in sorted(arrivals, key=lambda arrival: arrival[0]):
        deadline_s = None if left_s is None else at_s + left_s
        request = request_of(priority=URGENT, at_s=at_s, deadline_s=deadline_s)
        patient_until_s = at_s + 4 * AGE_STEP_S
        due[request.id] = (min(deadline_s or patient_until_s, patient_until_s), at_s, request.id)
        room.put(request, 5, at_s)

    served = [request.id for request in drain(room, now_s)]
    assert served == sorted(due, key=lambda id: due[id])


def test_of_those_with_time_the_cheapest_goes_first_when_that_is_wanted_but_deadlines_go_before() -> None:
    room = make_room(shortest_first=True)
    dear, cheap, dated = request_of(), request_of(), request_of(deadline_s=40.0)
    hurried = request_of(deadline_s=30.0)
    # Beyond its patience a deadline is none.
    later = request_of(deadline_s=4 * AGE_STEP_S + 1)
    for request, cost in ((dear, 9), (cheap, 1), (dated, 99), (hurried, 100), (later, 5)):
        room.put(request, cost, 0.0)

    assert drain(room) == [hurried, dated, cheap, later, dear]


@pytest.mark.parametrize("shortest_first", [False, True])
def test_one_whose_patience_has_ended_goes_before_newer_ones_with_deadlines_that_are_cheaper(
    shortest_first: bool,
) -> None:
    room = make_room(shortest_first=shortest_first)
    patience_s = 4 * AGE_STEP_S
    old = request_of()
    room.put(old, 1000, 0.0)
    # It is past its deadline, but nobody has said so yet.
    newer = request_of(at_s=1.0, deadline_s=2.0)
    room.put(newer, 1, 1.0)

    assert room.peek(patience_s - 1) is newer
    assert room.peek(patience_s) is old


@pytest.mark.parametrize(("rank", "steps"), [(1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (3, 3)])
def test_a_request_becomes_one_tier_more_urgent_with_each_step_that_it_has_waited(
    rank: int, steps: int
) -> None:
    moment_s = steps * AGE_STEP_S
    for now_s, newcomers_rank, old_is_first in (
        (moment_s - 0.001, rank - steps, False),
        (moment_s, rank - steps + 1, True),
    ):
        room = make_room()
        old, newcomer = request_of(priority=TIERS[rank]), request_of("new", TIERS[newcomers_rank], at_s=now_s)
        room.put(old, 1, 0.0)
        room.put(newcomer, 1, now_s)
        assert room.peek(now_s) is (old if old_is_first else newcomer)


@given(ARRIVALS, st.data())
def test_what_is_removed_is_never_served_and_the_counts_are_right(
    arrivals: list[tuple[Priority, str, int]], data: st.DataObject
) -> None:
    room = make_room()
    requests = fill(room, arrivals)
    removed = data.draw(st.lists(st.sampled_from(requests), unique=True)) if requests else []

    assert all(room.remove(request) for request in removed)
    assert not any(room.remove(request) for request in removed)
    left = [request for request in requests if request not in removed]
    assert len(room) == len(left)
    assert {request.id for request in room} == {request.id for request in left}
    assert room.counts() == {tier: sum(r.priority is tier for r in left) for tier in TIERS}
    assert room.clients() == {
        client: sum(r.client == client for r in left) for client in {r.client for r in left}
    }
    assert len(drain(room)) == len(left)
    assert not room
    assert room.clients() == {}


@given(ARRIVALS, st.data())
def test_what_is_put_back_is_served_first_of_all_and_in_its_old_order(
    arrivals: list[tuple[Priority, str, int]], data: st.DataObject
) -> None:
    room = make_room(requests_max=len(arrivals))
    fill(room, arrivals)
    taken = [room.pop(0.0) for _ in range(data.draw(st.integers(0, len(arrivals))))]
    back = [request for request in taken if request is not None]
    waiting = {request.id for request in room}
    for request in reversed(back):
        room.put_back(request)

    assert len(room) == len(arrivals)
    assert room.returned == len(back)
    assert list(room)[: len(back)] == back
    assert {request.id for request in list(room)[len(back) :]} == waiting
    assert drain(room)[: len(back)] == back


def test_what_is_put_behind_is_served_after_those_that_were_put_back_and_before_the_others() -> None:
    room = make_room()
    back, behind, urgent = request_of(), request_of(), request_of(priority=URGENT)
    room.put(urgent, 1, 0.0)
    room.put_behind(behind)
    room.put_back(back)

    assert drain(room) == [back, behind, urgent]


def test_one_that_was_put_back_can_be_removed_and_taken_like_the_others() -> None:
    room = make_room()
    removed, taken, left = request_of(), request_of(), request_of()
    for request in (removed, taken, left):
        room.put_behind(request, 5)

    assert room.remove(removed)
    room.take(taken)
    assert room.ahead(URGENT, "c", 0.0) == 5
    assert drain(room) == [left]


def test_one_that_gave_way_goes_on_before_all_of_its_client_and_tier_that_came_later() -> None:
    room = make_room()
    first, second, third = request_of(), request_of(at_s=1.0), request_of(at_s=2.0)
    urgent = request_of("other", HIGH, at_s=2.0)
    for request in (first, second, third):
        room.put(request, 5, 2.0)
    room.take(second)
    room.put_again(second, 4)
    room.put(urgent, 5, 2.0)

    assert drain(room, 2.0) == [urgent, first, second, third]


def test_one_that_gave_way_has_not_lost_what_it_had_waited() -> None:
    room = make_room()
    old = request_of(priority=BACKGROUND)
    later_s = 3 * AGE_STEP_S
    room.put(request_of("other", HIGH, at_s=later_s), 5, later_s)
    room.put_again(old, 4)

    assert room.peek(later_s) is old


def test_all_that_gave_way_are_recalled_behind_those_that_were_put_back_and_no_other_is() -> None:
    room = make_room()
    lost, background, high, normal = (
        request_of(),
        *(request_of("a", tier) for tier in (BACKGROUND, HIGH, NORMAL)),
    )
    fresh = request_of(priority=URGENT)
    room.put(fresh, 1, 0.0)
    for request in (background, high, normal):
        room.put_again(request, 7)
    room.put_back(lost)
    room.recall()

    assert room.returned == 4
    assert room.ahead(BACKGROUND, "z", 0.0) == 3 * 7 + 1
    assert drain(room) == [lost, high, normal, background, fresh]


def test_one_that_gave_way_and_was_removed_is_not_recalled() -> None:
    room = make_room()
    request = request_of()
    room.put_again(request, 7)
    room.remove(request)
    room.recall()

    assert room.returned == 0


@given(ARRIVALS, st.sampled_from(TIERS))
def test_the_first_of_a_tier_is_the_one_that_would_be_first_if_only_that_tier_waited(
    arrivals: list[tuple[Priority, str, int]], tier: Priority
) -> None:
    room, alone = make_room(), make_room()
    requests = fill(room, arrivals)
    for request, (priority, _, cost) in zip(requests, arrivals, strict=True):
        if priority is tier:
            alone.put(request, cost, 0.0)

    while (first := room.peek_tier(tier)) is not None:
        room.take(first)
        assert alone.pop(0.0) is first
    assert not alone


def test_who_goes_out_of_turn_is_charged_for_it() -> None:
    room = make_room(quantum_tokens=10)
    a, b = ([request_of(client, HIGH) for _ in range(4)] for client in "ab")
    urgent = request_of("a", URGENT)
    for request in (*a, *b, urgent):
        room.put(request, 50 if request is urgent else 10, 0.0)
    later_s = AGE_STEP_S
    assert room.peek(later_s) is a[0]
    assert room.peek_tier(URGENT) is urgent
    room.take(urgent)

    assert [request.client for request in drain(room, later_s)] == [*"bbbb", *"aaaa"]


def test_who_was_passed_by_others_out_of_turn_does_not_make_up_for_it() -> None:
    room = make_room(quantum_tokens=10)
    now_s = AGE_STEP_S
    for client, tier, at_s in (("aged", NORMAL, 0.0), ("urgent", HIGH, now_s)):
        for _ in range(20):
            room.put(request_of(client, tier, at_s=at_s), 10, at_s)
    room.peek(now_s)
    for _ in range(10):
        urgent = room.peek_tier(HIGH)
        assert urgent is not None
        room.take(urgent)
    served = [request.client for request in drain(room, now_s)]

    assert served[0] == "aged"
    assert served[1:9].count("aged") == 4


def test_a_bound_that_is_reached_refuses_and_says_which_it_is() -> None:
    for which, room in (
        ("client", make_room(client_requests_max=2)),
        ("tier", make_room(tier_requests_max=2)),
        ("model", make_room(requests_max=2)),
    ):
        for _ in range(2):
            room.put(request_of(), 1, 0.0)
        with pytest.raises(Overfull) as raised:
            room.put(request_of(), 1, 0.0)
        assert (raised.value.which, raised.value.bound) == (which, 2)
        assert len(room) == 2
        room.pop(0.0)
        room.put(request_of(), 1, 0.0)


def test_a_client_at_its_bound_leaves_the_others_room() -> None:
    room = make_room(requests_max=3, client_requests_max=2)
    for client in "aab":
        room.put(request_of(client), 1, 0.0)

    assert room.clients() == {"a": 2, "b": 1}


def test_a_full_room_takes_back_what_it_had_accepted_and_counts_it() -> None:
    room = make_room(requests_max=1)
    first, second, third = request_of(), request_of(), request_of()
    room.put(first, 1, 0.0)
    room.pop(0.0)
    room.put(second, 1, 0.0)
    room.put_back(first)
    room.put_again(third, 1)

    assert len(room) == 3
    with pytest.raises(Overfull):
        room.put(request_of(), 1, 0.0)


def test_in_a_full_room_the_newest_of_the_least_urgent_tier_leaves_for_a_more_urgent_one() -> None:
    room = make_room(requests_max=4)
    high, normal = request_of(priority=HIGH), request_of(priority=NORMAL)
    older, newer = request_of(priority=BACKGROUND), request_of(priority=BACKGROUND, at_s=1.0)
    for request in (newer, older, normal, high):
        room.put(request, 1, 1.0)
    urgent = [request_of(priority=URGENT, at_s=1.0) for _ in range(5)]

    assert [room.put(request, 1, 1.0) for request in urgent[:4]] == [newer, older, normal, high]
    with pytest.raises(Overfull):
        room.put(urgent[4], 1, 1.0)
    assert drain(room, 1.0) == urgent[:4]


def test_the_client_with_most_waiting_in_the_tier_has_to_leave_first() -> None:
    room = make_room(requests_max=4)
    crowd = [request_of("crowd", BACKGROUND) for _ in range(3)]
    alone = request_of("alone", BACKGROUND, at_s=1.0)
    for request in (*crowd, alone):
        room.put(request, 1, 1.0)
    displaced = [room.put(request_of(priority=NORMAL, at_s=1.0), 1, 1.0) for _ in range(3)]

    assert displaced == [crowd[2], crowd[1], alone]


def test_nobody_leaves_for_one_of_its_own_tier_or_a_less_urgent_one() -> None:
    for tier in (NORMAL, BACKGROUND):
        room = make_room(requests_max=1)
        room.put(request_of("a", NORMAL), 1, 0.0)
        with pytest.raises(Overfull):
            room.put(request_of("b", tier), 1, 0.0)


def test_of_a_full_tier_the_last_of_a_crowd_leaves_for_a_client_that_would_still_have_no_more() -> None:
    room = make_room(requests_max=4)
    crowd = [request_of("crowd") for _ in range(4)]
    for request in crowd:
        room.put(request, 1, 0.0)

    assert room.put(request_of("a"), 1, 0.0) is crowd[3]
    assert room.put(request_of("b"), 1, 0.0) is crowd[2]
    for client in ("b", "c"):
        with pytest.raises(Overfull):
            room.put(request_of(client, BACKGROUND), 1, 0.0)
    with pytest.raises(Overfull):
        room.put(request_of("a"), 1, 0.0)


@pytest.mark.parametrize("tier", [NORMAL, BACKGROUND])
def test_a_client_whose_many_have_waited_long_goes_no_sooner_than_another_with_the_same_tier(
    tier: Priority,
) -> None:
    room = make_room(quantum_tokens=10)
    for _ in range(20):
        room.put(request_of("big", tier), 10, 0.0)
    now_s = 1.5 * AGE_STEP_S
    for _ in range(3):
        room.put(request_of("small", tier, at_s=now_s), 10, now_s)
    room.put(request_of("tiers", tier, at_s=now_s), 10, now_s)

    served = [request.client for _ in range(8) if (request := room.pop(now_s))]

    assert served.index("tiers") <= 2
    assert served.count("small") == 3
    assert served[:5].count("big") <= 2


@pytest.mark.parametrize("tier", TIERS)
def test_the_last_of_a_crowd_stays_once_it_has_waited_its_way_up(tier: Priority) -> None:
    aged_s = 3 * AGE_STEP_S
    for now_s, leaves in ((aged_s - 1, True), (aged_s, False)):
        room = make_room(requests_max=3)
        crowd = [request_of("crowd", tier) for _ in range(3)]
        for request in crowd:
            room.put(request, 1, 0.0)
        # With the tier that the crowd has come to.
        newcomer = request_of("a", TIERS[max(0, TIERS.index(tier) - int(now_s // AGE_STEP_S))], at_s=now_s)
        if leaves:
            assert room.put(newcomer, 1, now_s) is crowd[2]
        else:
            with pytest.raises(Overfull):
                room.put(newcomer, 1, now_s)


def test_one_that_has_begun_or_has_waited_its_way_up_does_not_leave() -> None:
    room = make_room(requests_max=3)
    room.put_again(request_of(priority=BACKGROUND), 1)
    old, older = request_of(priority=BACKGROUND, at_s=1.0), request_of(priority=BACKGROUND)
    room.put(old, 1, 1.0)
    aged_s = 3 * AGE_STEP_S

    assert room.put(older, 1, 1.0) is None
    assert room.put(request_of(priority=URGENT, at_s=aged_s), 1, aged_s) is old
    with pytest.raises(Overfull):
        room.put(request_of(priority=URGENT, at_s=aged_s), 1, aged_s)


def test_a_bound_of_the_tier_or_the_client_displaces_nobody() -> None:
    for room in (
        make_room(requests_max=2, tier_requests_max=1),
        make_room(requests_max=2, client_requests_max=1),
    ):
        room.put(request_of("a", URGENT), 1, 0.0)
        room.put(request_of("b", BACKGROUND), 1, 0.0)
        with pytest.raises(Overfull):
            room.put(request_of("a", URGENT), 1, 0.0)
        assert len(room) == 2


def test_who_is_to_leave_first_is_of_the_least_urgent_tier_and_has_had_no_turn() -> None:
    room = make_room()
    assert room.least_urgent_newest() is None
    room.put_again(request_of(priority=BACKGROUND), 1)
    assert room.least_urgent_newest() is None
    normal = [request_of("a"), request_of("a"), request_of("b")]
    for request in (request_of(priority=URGENT), *normal):
        room.put(request, 1, 0.0)
    order = []
    while (leaving := room.least_urgent_newest()) is not None:
        room.remove(leaving)
        order.append(leaving)

    assert order[:3] == [normal[1], normal[2], normal[0]]
    assert len(order) == 4
    assert len(room) == 1


@given(ARRIVALS, st.integers(0, 20), st.sampled_from(TIERS), st.sampled_from("abz"), st.integers(1, 30))
def test_no_more_goes_before_a_newcomer_than_was_said(
    arrivals: list[tuple[Priority, str, int]], gone: int, tier: Priority, client: str, cost: int
) -> None:
    # All of one cost, so that the mean is what each one costs.
    room = make_room(quantum_tokens=8)
    fill(room, [(priority, other, cost) for priority, other, _ in arrivals])
    for _ in range(gone):
        room.pop(0.0)
    said, waiting = room.ahead(tier, client, 0.0), len(room)
    newcomer = request_of(client, tier)
    room.put(newcomer, cost, 0.0)
    served = drain(room)

    # Who is in the midst of a round, or has debts, may go one quantum later than one that has just come.
    others = {request.client for request in served} - {client}
    assert served.index(newcomer) * cost <= said + 8 * len(others)
    assert said <= cost * waiting


def test_a_client_has_to_wait_until_its_debt_is_settled_and_is_told_so() -> None:
    room = make_room(quantum_tokens=10)
    room.put(request_of("debtor"), 100, 0.0)
    for _ in range(100):
        room.put(request_of("crowd"), 10, 0.0)
    assert room.peek(0.0) is room.pop(0.0)
    said = {client: room.ahead(NORMAL, client, 0.0) for client in ("debtor", "new")}
    debtor, new = request_of("debtor"), request_of("new")
    for request in (debtor, new):
        room.put(request, 10, 0.0)
    served = drain(room)

    assert said == {"debtor": 110, "new": 20}
    assert served.index(new) < 2
    assert 9 <= served.index(debtor) <= 11


def test_a_client_with_nothing_waiting_has_no_more_than_a_share_of_a_crowd_before_it() -> None:
    room = make_room(quantum_tokens=10)
    for _ in range(100):
        room.put(request_of("crowd"), 20, 0.0)

    assert room.ahead(NORMAL, "crowd", 0.0) == 2000
    assert room.ahead(NORMAL, "alone", 0.0) == 30
    assert room.ahead(BACKGROUND, "alone", 0.0) == 2000
    assert room.ahead(HIGH, "alone", 0.0) == 0
