"""What an action can do, and who holds what."""

import pytest

from mlxsup.config.schema import SloAction
from mlxsup.protocol.generation import Priority
from mlxsup.supervisor.qos.levers import Board, Sight, Step
from tests.fakes.levers import FakeLevers

ALL = Sight(frozenset(Priority), 16)
TIERS = list(Priority)
ONE, OTHER = "one", "other"


class Bench:
    def __init__(self, *, batch: int = 16, chunk: int = 256) -> None:
        self.levers = FakeLevers()
        self.board = Board(
            "m", self.levers, batch_sequences_max=batch, prefill_chunk_tokens=chunk, recycle_interval_s=600.0
        )

    def step(
        self,
        action: SloAction,
        *,
        owner: str = ONE,
        tier: Priority = Priority.INTERACTIVE,
        sight: Sight = ALL,
        now_s: float = 0.0,
    ) -> Step | None:
        """Taken, if there is one."""
        index = len(self.levers.pulled)
        step = self.board.next_step(owner, tier, action, index, sight, now_s)
        if step is not None:
            self.board.take(owner, step, now_s)
        return step

    def bounds(self, action: SloAction, times: int, sight: Sight = ALL) -> list[int | None]:
        steps = [self.step(action, sight=sight) for _ in range(times)]
        return [None if step is None else step.bound for step in steps]


@pytest.mark.parametrize("tier", Priority)
def test_shedding_begins_with_the_least_urgent_tier_and_ends_below_the_one_that_suffers(
    tier: Priority,
) -> None:
    bench = Bench()
    victims = [step.tier for _ in Priority if (step := bench.step("shed", tier=tier)) is not None]
    assert victims == TIERS[: TIERS.index(tier) : -1]


def test_a_tier_without_requests_is_not_shed() -> None:
    bench = Bench()
    step = bench.step("shed", sight=Sight(frozenset({Priority.INTERACTIVE, Priority.HIGH}), 1))
    assert step is not None
    assert step.tier is Priority.HIGH
    assert (
        bench.step("shed", tier=Priority.HIGH, owner=OTHER, sight=Sight(frozenset({Priority.HIGH}), 1))
        is None
    )


def test_a_batch_is_halved_from_what_runs_down_to_one() -> None:
    assert Bench().bounds("batch", 5) == [8, 4, 2, 1, None]
    assert Bench(batch=64).bounds("batch", 2, Sight(frozenset(), 5)) == [2, 1]
    assert Bench().bounds("batch", 1, Sight(frozenset(), 1)) == [None]


def test_a_chunk_is_halved_down_to_the_least_that_is_allowed() -> None:
    assert Bench(chunk=100).bounds("chunk", 4) == [50, 25, 16, None]


def test_a_worker_is_recycled_where_there_is_one_and_not_again_within_the_interval() -> None:
    bench = Bench()
    bench.levers.ready = False
    assert bench.step("recycle") is None
    bench.levers.ready = True
    assert bench.step("recycle", now_s=10.0) is not None
    assert bench.step("recycle", owner=OTHER, now_s=609.0) is None
    assert bench.step("recycle", owner=OTHER, now_s=610.0) is not None
    assert bench.levers.recycled == 2


def test_what_another_objective_has_done_is_joined_before_anything_more_is_done() -> None:
    bench = Bench()
    for action in ("shed", "batch", "chunk"):
        mine = bench.step(action)
        theirs = bench.step(action, owner=OTHER)
        assert mine is not None
        assert theirs is not None
        assert (theirs.tier, theirs.bound) == (mine.tier, mine.bound)
    assert bench.levers.pulled == [("shed", Priority.BACKGROUND, True), ("batch", 8), ("chunk", 128)]


def test_a_lever_is_let_go_when_the_last_who_wants_it_has_let_go() -> None:
    bench = Bench()
    mine, theirs = bench.step("shed"), bench.step("shed", owner=OTHER)
    assert mine is not None
    assert theirs is not None
    bench.board.release(ONE, mine)
    assert bench.board.is_shed(Priority.BACKGROUND)
    bench.board.release(OTHER, theirs)
    assert bench.levers.neutral
    assert bench.levers.pulled == [("shed", Priority.BACKGROUND, True), ("shed", Priority.BACKGROUND, False)]


def test_of_several_bounds_the_least_holds_and_the_next_one_follows_it() -> None:
    bench = Bench()
    first, second = bench.step("batch"), bench.step("batch")
    assert first is not None
    assert second is not None
    bench.board.release(ONE, second)
    assert bench.levers.sequences_max == 8
    bench.board.release(ONE, first)
    assert bench.levers.pulled == [("batch", 8), ("batch", 4), ("batch", 8), ("batch", None)]


def test_nothing_is_let_go_that_was_not_taken() -> None:
    bench = Bench()
    step = bench.step("shed")
    assert step is not None
    with pytest.raises(ValueError, match="not in list"):
        bench.board.release(OTHER, step)
