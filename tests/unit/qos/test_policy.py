"""When something is done about a broken objective, and when it is undone."""

import itertools
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxsup.config.schema import Qos, SloAction
from mlxsup.protocol.generation import Priority
from mlxsup.supervisor.qos.burn import Burn
from mlxsup.supervisor.qos.levers import Board, Sight, Step
from mlxsup.supervisor.qos.objective import Kind, Objective, of_seconds
from mlxsup.supervisor.qos.policy import Change, Policy, State
from tests.fakes.levers import FakeLevers

QOS = Qos(cooldown_s=30.0)
TTFT = Objective(Kind.TTFT, 2.0, 0.05)
ALL = Sight(frozenset(Priority), 16)

BROKEN = Burn(short=10.0, long=10.0, samples=20, figure=5.0, broken=True, calm=False)
UNEASY = Burn(short=4.0, long=4.0, samples=20, figure=3.0, broken=False, calm=False)
CALM = Burn(short=0.0, long=0.0, samples=20, figure=1.0, broken=False, calm=True)


class Bench:
    """One model, and a policy for each list of actions."""

    def __init__(self, *actions: tuple[SloAction, ...], tier: Priority = Priority.INTERACTIVE) -> None:
        self.levers = FakeLevers()
        self.board = Board(
            "m", self.levers, batch_sequences_max=16, prefill_chunk_tokens=64, recycle_interval_s=600.0
        )
        self.policies = [Policy(tier, TTFT, listed, self.board, QOS) for listed in actions]
        self.now_s = 0.0
        self.done: list[tuple[float, Policy, Change]] = []

    @property
    def policy(self) -> Policy:
        (policy,) = self.policies
        return policy

    def is_in(self, state: State) -> bool:
        return self.policy.state is state

    def look(self, burn: Burn, *, sight: Sight = ALL, times: int = 1, every_s: float = 5.0) -> list[str]:
        """What is done and undone meanwhile, of all policies."""
        found = []
        for _ in range(times):
            self.now_s += every_s
            for policy in self.policies:
                policy.measure(self.now_s)
                change = policy.consider(burn, lambda: sight, self.now_s)
                if change is not None:
                    self.done.append((self.now_s, policy, change))
                    found.append(("-" if change.undone else "+") + str(change.step))
        return found


def test_actions_are_done_in_their_order_a_cooldown_apart_and_undone_in_reverse() -> None:
    bench = Bench(("event", "shed", "batch", "chunk", "recycle"))
    assert bench.look(BROKEN) == ["+event"]
    assert bench.look(BROKEN, times=5) == []
    assert bench.look(BROKEN) == ["+shed background"]
    assert bench.look(BROKEN, times=100) == [
        *("+shed normal", "+shed high", "+batch 8", "+chunk 32", "+recycle")
    ]
    assert bench.is_in(State.ACTING)

    assert bench.look(CALM, times=6) == []
    assert bench.is_in(State.RECOVERING)
    assert bench.look(CALM) == ["-chunk 32"]
    assert bench.look(CALM, times=5) == []
    assert bench.look(CALM, times=100) == [
        *("-batch 8", "-shed high", "-shed normal", "-shed background", "-event")
    ]
    assert bench.is_in(State.OK)
    assert bench.levers.neutral
    assert bench.levers.recycled == 1


def test_an_action_that_is_listed_twice_goes_further_the_second_time() -> None:
    bench = Bench(("batch", "batch", "chunk", "chunk"))
    assert bench.look(BROKEN, times=100) == ["+batch 8", "+batch 4", "+chunk 32", "+chunk 16"]


def test_what_can_change_nothing_is_passed_over_at_once() -> None:
    bench = Bench(("shed", "batch", "chunk"), tier=Priority.NORMAL)
    alone = Sight(frozenset({Priority.INTERACTIVE, Priority.NORMAL}), 1)
    assert bench.look(BROKEN, sight=alone) == ["+chunk 32"]


def test_with_nothing_that_can_be_done_it_is_acting_all_the_same_and_ends_with_the_trouble() -> None:
    bench = Bench(())
    assert bench.look(BROKEN, times=3) == []
    assert bench.is_in(State.ACTING)
    assert bench.look(CALM) == []
    assert bench.is_in(State.OK)


def test_what_is_neither_broken_nor_calm_begins_nothing_and_ends_nothing() -> None:
    bench = Bench(("shed", "batch"))
    assert bench.look(UNEASY, times=100) == []
    assert bench.is_in(State.OK)
    bench.look(BROKEN)
    assert bench.look(UNEASY, times=100) == []
    assert bench.is_in(State.ACTING)


def test_calm_has_to_last_for_a_cooldown_without_a_break() -> None:
    bench = Bench(("event",))
    bench.look(BROKEN)
    for _ in range(20):
        assert bench.look(CALM, times=5) == []
        assert bench.look(UNEASY) == []
    assert bench.look(CALM, times=7) == ["-event"]


def test_broken_again_while_it_recovers_it_goes_on_from_what_is_in_force() -> None:
    bench = Bench(("event", "batch", "chunk"))
    bench.look(BROKEN, times=100)
    assert bench.look(CALM, times=7) == ["-chunk 32"]
    assert bench.look(BROKEN, times=6) == ["+chunk 32"]
    assert [str(step) for step in bench.policy.in_force] == ["event", "batch 8", "chunk 32"]


def test_broken_again_right_after_it_was_ok_it_waits_for_the_cooldown() -> None:
    bench = Bench(("event",))
    bench.look(BROKEN)
    assert bench.look(CALM, times=7) == ["-event"]
    assert bench.look(BROKEN, times=5) == []
    assert bench.look(BROKEN) == ["+event"]


def test_a_change_says_what_the_figure_was_before_and_what_it_was_from_then_on() -> None:
    bench = Bench(("event",))
    bench.policy.meter.record(of_seconds(9.0), 0.0)
    bench.look(BROKEN)
    (change,) = bench.policy.changes
    for second in range(5):
        bench.policy.meter.record(of_seconds(0.5), 5.0 + second)
    bench.look(BROKEN, times=5)
    assert (change.before, change.after, change.measured) == (5.0, None, False)
    assert bench.policy.measure(35.0) is change
    assert change.after == pytest.approx(0.5, rel=0.03)
    assert bench.policy.measure(36.0) is None


def test_a_change_after_which_nobody_asked_for_anything_has_no_figure() -> None:
    bench = Bench(("event",))
    bench.look(BROKEN, times=20)
    (change,) = bench.policy.changes
    assert (change.after, change.measured) == (None, True)


def test_the_log_of_changes_is_bounded() -> None:
    bench = Bench(("event",))
    for _ in range(100):
        bench.look(BROKEN, times=10)
        bench.look(CALM, times=10)
    assert len(bench.done) == 200
    assert len(bench.policy.changes) == 32


ACTIONS = st.lists(st.sampled_from(["event", "shed", "batch", "chunk", "recycle"]), max_size=6).map(tuple)
SIGHTS = st.builds(Sight, st.frozensets(st.sampled_from(list(Priority))), st.integers(0, 16))
LOOKS = st.lists(
    st.tuples(
        st.sampled_from([BROKEN, UNEASY, CALM]), SIGHTS, st.sampled_from([1.0, 5.0, 31.0]), st.booleans()
    ),
    max_size=80,
)


@given(st.lists(ACTIONS, min_size=1, max_size=3), st.sampled_from(list(Priority)), LOOKS)
def test_whatever_happens_all_that_was_done_is_undone_once_and_never_faster_than_the_cooldown(
    actions: list[Any], tier: Priority, looks: list[tuple[Burn, Sight, float, bool]]
) -> None:
    bench = Bench(*actions, tier=tier)
    for burn, sight, every_s, ready in looks:
        bench.levers.ready = ready
        bench.look(burn, sight=sight, every_s=every_s)
    bench.look(CALM, times=150)

    assert bench.levers.neutral
    for policy in bench.policies:
        own = [(at_s, change) for at_s, changed, change in bench.done if changed is policy]
        assert all(later - sooner >= QOS.cooldown_s for (sooner, _), (later, _) in itertools.pairwise(own))
        done = Counter(change.step for _, change in own if not change.undone and change.step.undoable)
        assert done == Counter(change.step for _, change in own if change.undone)
        assert policy.state is State.OK
        assert policy.in_force == []
        shed = {change.step.tier for _, change in own if change.step.tier is not None}
        tiers = list(Priority)
        assert all(tiers.index(victim) > tiers.index(tier) for victim in shed)


@given(looks=LOOKS)
def test_a_step_is_undone_before_the_one_that_was_done_before_it(
    looks: list[tuple[Burn, Sight, float, bool]],
) -> None:
    bench = Bench(("event", "shed", "batch", "chunk"))
    for burn, sight, every_s, _ in looks:
        bench.look(burn, sight=sight, every_s=every_s)
    in_force: list[Step] = []
    for _, _, change in bench.done:
        if change.undone:
            assert in_force.pop() == change.step
        else:
            in_force.append(change.step)
    assert in_force == bench.policy.in_force


def test_burns_of_these_tests_are_what_a_meter_would_say() -> None:
    for burn in (BROKEN, UNEASY, CALM):
        assert burn.broken is (min(burn.short, burn.long) >= QOS.burn_rate_max)
        assert burn.calm is (max(burn.short, burn.long) < QOS.recover_share * QOS.burn_rate_max)
        assert msgspec.structs.asdict(burn)["figure"]
