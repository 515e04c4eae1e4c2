"""Caches that are kept for later: within their bytes, the oldest dropped first."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from mlxsup.worker.engine.parking import Parking


class Cache(msgspec.Struct):
    nbytes: int


class Parked(msgspec.Struct):
    id: int
    caches: list[Cache]


def parked(id: int, size: int) -> Parked:
    return Parked(id, [Cache(size // 2), Cache(size - size // 2)])


def test_what_is_parked_is_taken_once() -> None:
    parking: Parking[Parked] = Parking(10)
    parking.put(parked(1, 10))
    assert parking.take(1) == parked(1, 10)
    assert (parking.take(1), len(parking), parking.bytes) == (None, 0, 0)


def test_the_oldest_goes_first_when_a_newer_one_needs_room() -> None:
    parking: Parking[Parked] = Parking(10)
    for id in (1, 2, 3):
        parking.put(parked(id, 4))
    assert [parking.take(id) is not None for id in (1, 2, 3)] == [False, True, True]


def test_one_that_is_too_large_drops_no_other() -> None:
    parking: Parking[Parked] = Parking(10)
    parking.put(parked(1, 4))
    parking.put(parked(2, 11))
    assert [parking.take(id) is not None for id in (1, 2)] == [True, False]


@given(st.lists(st.tuples(st.sampled_from(["put", "take", "drop"]), st.integers(0, 5), st.integers(0, 30))))
def test_the_bound_is_never_exceeded_and_the_bytes_are_those_of_what_is_there(
    orders: list[tuple[str, int, int]],
) -> None:
    parking: Parking[Parked] = Parking(40)
    there: dict[int, int] = {}
    for verb, id, size in orders:
        if verb == "put":
            parking.put(parked(id, size))
            there[id] = size
        elif verb == "take":
            taken = parking.take(id)
            assert taken is None or taken.id == id
        else:
            parking.drop(id)
        assert 0 <= parking.bytes <= 40
    left = [taken for id in there if (taken := parking.take(id)) is not None]
    assert parking.bytes == 0
    assert len(parking) == 0
    assert all(sum(cache.nbytes for cache in each.caches) == there[each.id] for each in left)
