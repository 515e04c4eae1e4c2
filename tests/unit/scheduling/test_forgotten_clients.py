"""Whatever names clients have, nothing is kept of those who have nothing waiting, but for a bounded number of debts."""

import weakref

import pytest

from mlxsup.protocol.generation import Priority
from tests.fakes.rooms import make_room, request_of

DEBTORS_MAX = 4096


class Name(str):
    """One that can be seen to be forgotten."""

    __slots__ = ("__weakref__",)


def names(count: int) -> list[Name]:
    return [Name(f"client {number}") for number in range(count)]


@pytest.mark.parametrize("tier", list(Priority))
@pytest.mark.parametrize("is_computed", [True, False], ids=["computed", "cancelled"])
def test_a_client_that_waits_no_more_is_forgotten(tier: Priority, *, is_computed: bool) -> None:
    room = make_room()
    kept: weakref.WeakSet[Name] = weakref.WeakSet()
    for name in names(100):
        kept.add(name)
        request = request_of(name, tier)
        room.put(request, 1, 0.0)
        if is_computed:
            assert room.pop(0.0) is request
        else:
            assert room.remove(request)
    del name, request

    assert set(kept) == set()


def test_of_more_debtors_than_that_those_with_the_least_debt_are_forgotten() -> None:
    room = make_room(quantum_tokens=1)
    # Their turn never comes while others are new.
    room.put(request_of("oldest"), 1, 0.0)
    room.put(request_of("oldest"), 1, 0.0)
    kept: weakref.WeakSet[Name] = weakref.WeakSet()
    for number, name in enumerate(names(DEBTORS_MAX + 200)):
        kept.add(name)
        request = request_of(name)
        room.put(request, 1_000_000 - number, 0.0)
        room.take(request)
    del name, request

    assert len(kept) == DEBTORS_MAX
    assert Name("client 0") in kept
    assert Name(f"client {DEBTORS_MAX + 199}") not in kept
