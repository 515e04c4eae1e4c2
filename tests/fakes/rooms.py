"""Waiting rooms for tests, without bounds and without waiting where a test does not care."""

from mlxsup.protocol.generation import Priority
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.scheduling.waiting_room import RoomBounds, WaitingRoom
from tests.fakes.collecting_sink import CollectingSink
from tests.fakes.requests import make_request

_MANY = 1_000_000

AGE_STEP_S = 16.0
"""A power of two, so that sums of whole numbers of seconds are exact."""

SINK = CollectingSink()


def make_room(
    *,
    requests_max: int = _MANY,
    tier_requests_max: int = _MANY,
    client_requests_max: int = _MANY,
    age_step_s: float = AGE_STEP_S,
    quantum_tokens: int = 8,
    shortest_first: bool = False,
) -> WaitingRoom:
    return WaitingRoom(
        RoomBounds(
            requests_max=requests_max,
            tier_requests_max=tier_requests_max,
            client_requests_max=client_requests_max,
        ),
        age_step_s=age_step_s,
        quantum_tokens=quantum_tokens,
        shortest_first=shortest_first,
    )


def request_of(
    client: str = "c",
    priority: Priority = Priority.NORMAL,
    *,
    at_s: float = 0.0,
    deadline_s: float | None = None,
) -> GenerationRequest:
    return make_request(SINK, priority=priority, client=client, now_s=at_s, deadline_s=deadline_s)


def drain(room: WaitingRoom, now_s: float = 0.0) -> list[GenerationRequest]:
    """In the order in which they get a place."""
    return list(iter(lambda: room.pop(now_s), None))
