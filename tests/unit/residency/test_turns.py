"""Models that take turns in memory: how often each is loaded, and how long anybody waits."""

from collections import OrderedDict
from functools import partial

import pytest

from tests.unit.residency.machine import Machine

SIZE = 100


def loads_of_lru(names: str, places: int) -> int:
    """What serving in order of arrival costs when the one that was used longest ago makes room."""
    resident: OrderedDict[str, None] = OrderedDict()
    loads = 0
    for name in names:
        if name not in resident:
            loads += 1
            if len(resident) == places:
                resident.popitem(last=False)
        resident[name] = None
        resident.move_to_end(name)
    return loads


@pytest.mark.parametrize("interval_s", [0.2, 0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize(("load_s", "serve_s"), [(1.5, 0.5), (3.0, 2.0), (10.0, 3.0)])
def test_three_models_that_take_turns_in_memory_for_two_are_loaded_at_most_a_third_as_often_as_by_lru(
    interval_s: float, load_s: float, serve_s: float
) -> None:
    machine = Machine(2 * SIZE)
    for name in "abc":
        machine.add(name, SIZE, load_s=load_s)
    names = "abc" * 100
    for at, name in enumerate(names):
        machine.at(at * interval_s, partial(machine.request, name, serve_s))
    machine.run_until(len(names) * interval_s + 600)

    waits_s = [wait_s for model in machine.models.values() for wait_s in model.waits_s]
    assert len(waits_s) == len(names)
    assert machine.idle()
    assert loads_of_lru(names, places=2) == len(names)
    assert 3 * machine.loads.total() <= len(names)
    # The patience of the one that waits, and what the two before it may do with theirs.
    assert max(waits_s) <= machine.swap_wait_s + 2 * (machine.residency_min_s + load_s + 2 * serve_s)


def test_a_large_model_that_has_waited_too_long_is_passed_by_no_small_ones() -> None:
    machine = Machine(100, residency_min_s=10, swap_wait_s=60)
    large = machine.add("large", 100)
    for number in range(6):
        machine.add(f"small{number}", 30)
    for at in range(600):
        machine.at(at, partial(machine.request, f"small{at // 7 % 6}", 9.0))
    machine.at(50, partial(machine.request, "large", 1.0))
    machine.run_until(1500)

    assert 60 <= large.turns_s[0] <= 60 + 10 + 3 + 9 + 1
    assert machine.idle()


def test_a_model_in_the_background_has_its_turn_among_urgent_ones_that_never_end() -> None:
    machine = Machine(100, residency_min_s=5, swap_wait_s=60)
    slow = machine.add("slow", 100, urgency=3)
    for name in "ab":
        machine.add(name, 100, urgency=0)
    for at in range(600):
        machine.at(at, partial(machine.request, "ab"[at % 2], 0.9))
    machine.at(10, partial(machine.request, "slow", 1.0))
    machine.run_until(1500)

    assert slow.turns_s[0] <= 60 + 2 * (5 + 3 + 1 + 1)
    assert machine.idle()


def test_what_is_free_goes_to_who_fits_while_nobody_has_waited_too_long() -> None:
    machine = Machine(100, swap_wait_s=60)
    for name, size in (("busy", 60), ("large", 80), ("small", 30)):
        machine.add(name, size)
    for name in ("busy", "large", "small"):
        machine.run_until(machine.now_s + 5)
        machine.request(name, 50.0 if name == "busy" else 1.0)
    machine.run_until(20)

    assert (machine.models["large"].loads, machine.models["small"].loads) == (0, 1)
    machine.run_until(100)
    assert machine.models["large"].loads == 1


def test_no_more_make_room_than_have_to() -> None:
    machine = Machine(100)
    for name, size in (("a", 20), ("b", 70), ("c", 70)):
        machine.add(name, size)
        machine.request(name, 1.0)
        machine.run_until(machine.now_s + 10)

    assert [len(machine.models[name].evicted_s) for name in "abc"] == [0, 1, 0]
