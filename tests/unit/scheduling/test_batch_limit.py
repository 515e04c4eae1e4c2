"""The batch is as large as configuration, memory, policies and the time between two tokens allow."""

from mlxsup.protocol.generation import Priority
from mlxsup.supervisor.scheduling.batch_limit import BatchLimit

INTERACTIVE, BACKGROUND = Priority.INTERACTIVE, Priority.BACKGROUND


def steps(limit: BatchLimit, count: int, gap_s: float, tier: Priority, running: int) -> None:
    for _ in range(count):
        limit.note_step(gap_s, [tier], running)


def test_the_smallest_of_all_bounds_counts_and_one_is_always_computed() -> None:
    limit = BatchLimit(8, {})
    assert limit.at(0.0) == 8
    limit.crowd(3, until_s=10.0)
    limit.hold(5)
    assert (limit.at(9.0), limit.at(10.0)) == (3, 5)
    limit.hold(0)
    assert limit.at(10.0) == 1
    limit.hold(None)
    assert limit.at(10.0) == 8


def test_slow_steps_shrink_the_batch_until_the_target_is_met_and_fast_ones_let_it_grow_back() -> None:
    limit = BatchLimit(16, {INTERACTIVE: 0.05})
    for _ in range(30):
        # A step takes 5 ms for each sequence.
        running = limit.at(0.0)
        steps(limit, 16, 0.005 * running, INTERACTIVE, running)
    assert 8 <= limit.at(0.0) <= 10

    steps(limit, 16 * 20, 0.005, INTERACTIVE, 4)
    assert limit.at(0.0) == 16


def test_who_has_no_target_is_computed_in_the_largest_batch() -> None:
    limit = BatchLimit(16, {INTERACTIVE: 0.05})
    steps(limit, 64, 1.0, INTERACTIVE, 16)
    assert limit.at(0.0) < 16
    steps(limit, 1, 1.0, BACKGROUND, 16)
    assert limit.at(0.0) == 16
