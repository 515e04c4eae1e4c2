import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import Priority
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.pool.queue import RequestQueue
from tests.fakes.collecting_sink import CollectingSink
from tests.fakes.requests import make_request

ARRIVALS = st.lists(st.tuples(st.sampled_from(list(Priority)), st.sampled_from("abc")), max_size=30)


def make_requests(arrivals: list[tuple[Priority, str]]) -> list[GenerationRequest]:
    return [
        make_request(CollectingSink(), priority=priority, client=client, now_s=0.0)
        for priority, client in arrivals
    ]


def drain(queue: RequestQueue) -> list[GenerationRequest]:
    return list(iter(queue.pop, None))


@given(ARRIVALS)
def test_a_more_urgent_tier_is_always_served_first(arrivals: list[tuple[Priority, str]]) -> None:
    queue = RequestQueue(100)
    for request in make_requests(arrivals):
        queue.put(request, None)
    tiers = [list(Priority).index(request.priority) for request in drain(queue)]

    assert tiers == sorted(tiers)
    assert len(tiers) == len(arrivals)


@given(ARRIVALS)
def test_each_clients_requests_of_a_tier_are_served_in_order(arrivals: list[tuple[Priority, str]]) -> None:
    queue = RequestQueue(100)
    requests = make_requests(arrivals)
    for request in requests:
        queue.put(request, None)
    served = drain(queue)

    for key in set(arrivals):
        of_key = [request.id for request in served if (request.priority, request.client) == key]
        assert of_key == sorted(of_key)


@given(st.integers(1, 20), st.integers(1, 20))
def test_within_a_tier_clients_take_turns(of_a: int, of_b: int) -> None:
    queue = RequestQueue(100)
    for request in make_requests([(Priority.NORMAL, "a")] * of_a + [(Priority.NORMAL, "b")] * of_b):
        queue.put(request, None)
    clients = "".join(request.client for request in drain(queue))

    assert clients[: 2 * min(of_a, of_b)] == "ab" * min(of_a, of_b)


@given(ARRIVALS, st.data())
def test_what_is_removed_is_never_served_and_the_count_is_right(
    arrivals: list[tuple[Priority, str]], data: st.DataObject
) -> None:
    queue = RequestQueue(100)
    requests = make_requests(arrivals)
    for request in requests:
        queue.put(request, None)
    removed = data.draw(st.lists(st.sampled_from(requests), unique=True)) if requests else []

    assert all(queue.remove(request) for request in removed)
    assert not any(queue.remove(request) for request in removed)
    assert len(queue) == len(requests) - len(removed)
    assert {request.id for request in queue} == {request.id for request in requests if request not in removed}
    assert len(drain(queue)) == len(requests) - len(removed)
    assert len(queue) == 0


@given(ARRIVALS, st.data())
def test_what_is_put_back_is_served_first_of_all_and_in_its_old_order(
    arrivals: list[tuple[Priority, str]], data: st.DataObject
) -> None:
    queue = RequestQueue(len(arrivals))
    for request in make_requests(arrivals):
        queue.put(request, None)
    taken = [queue.pop() for _ in range(data.draw(st.integers(0, len(arrivals))))]
    waiting = list(queue)
    back = [request for request in taken if request is not None]
    for request in reversed(back):
        queue.put_back(request)

    assert len(queue) == len(arrivals)
    assert queue.peek() is (back + waiting + [None])[0]
    assert drain(queue)[: len(back)] == back


def test_what_is_put_behind_is_served_after_those_that_were_put_back_and_before_the_others() -> None:
    queue = RequestQueue(10)
    back, behind, urgent = make_requests(
        [(Priority.NORMAL, "a"), (Priority.NORMAL, "a"), (Priority.INTERACTIVE, "a")]
    )
    queue.put(urgent, None)
    queue.put_behind(behind)
    queue.put_back(back)

    assert drain(queue) == [back, behind, urgent]


def test_a_full_queue_takes_back_what_it_had_accepted() -> None:
    queue = RequestQueue(1)
    first, second = make_requests([(Priority.NORMAL, "a")] * 2)
    queue.put(first, None)
    queue.pop()
    queue.put(second, None)
    queue.put_back(first)

    assert drain(queue) == [first, second]


def test_a_full_queue_refuses_and_takes_again_once_one_has_left() -> None:
    queue = RequestQueue(1)
    first, second = make_requests([(Priority.NORMAL, "a")] * 2)
    queue.put(first, None)
    with pytest.raises(RpcError) as raised:
        queue.put(second, 40)
    queue.pop()
    queue.put(second, None)

    assert raised.value.kind is ErrorKind.OVERLOADED
    assert raised.value.data.retry_after_ms == 40
