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
