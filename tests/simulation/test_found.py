"""The checks can fail: of each defect that is put into the supervisor they find something, and soon."""

import math

import pytest
from msgspec.structs import replace

from tests.simulation.checker import check
from tests.simulation.draw import draw_schedule
from tests.simulation.mutations import MUTATIONS, Mutation
from tests.simulation.schedule import Fate
from tests.simulation.stage import quiet
from tests.simulation.world import play

WITHIN = 500


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_defect_is_found(mutation: Mutation) -> None:
    with quiet(), mutation.applied():
        for seed in range(WITHIN):
            schedule = draw_schedule(seed)
            if check(schedule, play(schedule)):
                return
    pytest.fail(f"not found in {WITHIN} schedules")


def test_a_supervisor_that_never_ends_is_ended_and_shown_with_what_it_waits_for() -> None:
    (mutation,) = [mutation for mutation in MUTATIONS if mutation.name == "nobody is killed"]
    stubborn = Fate(obeys_sigterm=False, ends_when_told_s=math.inf)
    schedule = replace(draw_schedule(0), fates=(stubborn,) * 20)
    with quiet():
        right = check(schedule, play(schedule))
        with mutation.applied():
            worse = check(schedule, play(schedule))

    assert right == []
    assert any("it is not over at" in fault and "Worker." in fault for fault in worse), worse
