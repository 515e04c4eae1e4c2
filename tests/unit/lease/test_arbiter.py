"""Turns at reading prompts on one GPU: one at a time, decoding first, nobody left waiting for ever."""

import math

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mlxsup.supervisor.lease.arbiter import Arbiter, LeaseBounds

BOUNDS = LeaseBounds(turn_s_max=10.0, step_wait_s=1.0, passes_max=3)
WORKERS = st.sampled_from("abcd")


def make_arbiter(grants: list[str]) -> Arbiter[str]:
    return Arbiter(BOUNDS, grants.append)


def test_who_is_alone_has_its_turn_at_once() -> None:
    grants: list[str] = []
    arbiter = make_arbiter(grants)
    arbiter.on_ask("a", 2, 0.0)
    assert (grants, arbiter.holder) == (["a"], "a")


def test_the_next_one_has_its_turn_when_the_one_before_is_over() -> None:
    grants: list[str] = []
    arbiter = make_arbiter(grants)
    for worker in "abc":
        arbiter.on_ask(worker, 2, 0.0)
    assert grants == ["a"]
    arbiter.on_done("a", 1.0)
    arbiter.on_done("b", 2.0)
    assert grants == ["a", "b", "c"]


def test_the_more_urgent_goes_first_and_then_who_asked_first() -> None:
    grants: list[str] = []
    arbiter = make_arbiter(grants)
    arbiter.on_ask("a", 3, 0.0)
    for worker, urgency in (("b", 3), ("c", 2), ("d", 0)):
        arbiter.on_ask(worker, urgency, 0.0)
    for worker in "adc":
        arbiter.on_done(worker, 1.0)
    assert grants == ["a", "d", "c", "b"]


def test_between_two_turns_the_others_that_decode_finish_a_step() -> None:
    grants: list[str] = []
    arbiter = make_arbiter(grants)
    arbiter.on_step("b", 0.0)
    arbiter.on_ask("a", 2, 0.0)
    arbiter.on_done("a", 0.1)
    arbiter.on_ask("a", 2, 0.1)
    assert grants == ["a"]
    arbiter.on_step("b", 0.2)
    assert grants == ["a", "a"]


def test_one_that_decodes_no_more_is_waited_for_no_longer_than_the_bound() -> None:
    grants: list[str] = []
    arbiter = make_arbiter(grants)
    arbiter.on_step("b", 0.0)
    for at_s in (0.1, 5.0):
        arbiter.on_ask("a", 2, at_s)
        arbiter.on_done("a", at_s)
    arbiter.on_ask("a", 2, 5.0)
    assert (grants, arbiter.next_tick_s) == (["a", "a", "a"], 15.0)

    idle: list[str] = []
    arbiter = make_arbiter(idle)
    arbiter.on_step("b", 0.0)
    arbiter.on_ask("a", 2, 0.0)
    arbiter.on_done("a", 0.5)
    arbiter.on_ask("a", 2, 0.5)
    assert (idle, arbiter.next_tick_s) == (["a"], 1.5)
    arbiter.on_idle("b", 0.6)
    assert idle == ["a", "a"]


def test_a_turn_is_lost_at_the_death_of_its_worker_and_when_it_takes_too_long() -> None:
    grants: list[str] = []
    arbiter = make_arbiter(grants)
    for worker in "abc":
        arbiter.on_ask(worker, 2, 0.0)
    arbiter.on_gone("a", 1.0)
    assert grants == ["a", "b"]
    arbiter.on_tick(10.9)
    assert arbiter.holder == "b"
    arbiter.on_tick(arbiter.next_tick_s)
    assert grants == ["a", "b", "c"]
    # It ends later, which takes nothing from the one that has it now.
    arbiter.on_done("b", 12.0)
    assert arbiter.holder == "c"


def test_who_asks_again_in_its_turn_goes_behind_those_who_wait() -> None:
    grants: list[str] = []
    arbiter = make_arbiter(grants)
    arbiter.on_ask("a", 2, 0.0)
    arbiter.on_ask("b", 2, 0.0)
    arbiter.on_ask("a", 2, 1.0)
    assert grants == ["a", "b"]


class Turns(RuleBasedStateMachine):
    """Workers that ask, decode, end their turns or never, and die, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.grants: list[str] = []
        self.arbiter = Arbiter(BOUNDS, self.granted)
        self.holder: str | None = None
        self.last: str | None = None
        self.numbers = 0
        self.granted_s = -math.inf
        self.released_s = -math.inf
        # By worker: the number of its question, its urgency, and how often it has been passed.
        self.asking: dict[str, list[float]] = {}
        # In which order things happened, also at the same moment.
        self.events = 0
        self.granted_at = 0
        self.stepped: dict[str, int] = {}

    def granted(self, worker: str) -> None:
        assert worker in self.asking
        assert self.holder is None or self.now_s >= self.granted_s + BOUNDS.turn_s_max
        if self.holder is not None:
            self.released_s = self.now_s
        waited = self.now_s >= self.released_s + BOUNDS.step_wait_s
        late = [
            other
            for other, at in self.stepped.items()
            if other not in (self.last, worker) and at < self.granted_at
        ]
        assert waited or not late
        for other in late:
            # Who had its time and used it not is waited for again when it has told something.
            del self.stepped[other]
        number, urgency, passed = self.asking.pop(worker)
        for ask in self.asking.values():
            if ask[1] < urgency:
                assert passed >= BOUNDS.passes_max
        for ask in self.asking.values():
            if ask[0] < number:
                ask[2] += 1
                # Each of those who were passed as often may go before it once.
                assert ask[2] <= BOUNDS.passes_max + 3
        self.holder = self.last = worker
        self.events += 1
        self.granted_at = self.events
        self.granted_s = self.now_s

    @rule(worker=WORKERS, urgency=st.integers(0, 3))
    def ask(self, worker: str, urgency: int) -> None:
        if self.holder == worker:
            self.holder, self.released_s = None, self.now_s
        if worker in self.asking:
            self.asking[worker][1] = urgency
        else:
            self.numbers += 1
            self.asking[worker] = [self.numbers, urgency, 0]
        self.arbiter.on_ask(worker, urgency, self.now_s)

    @rule(worker=WORKERS)
    def done(self, worker: str) -> None:
        self.forget(worker)
        self.arbiter.on_done(worker, self.now_s)

    @rule(worker=WORKERS)
    def gone(self, worker: str) -> None:
        self.forget(worker)
        self.stepped.pop(worker, None)
        self.arbiter.on_gone(worker, self.now_s)

    def forget(self, worker: str) -> None:
        self.asking.pop(worker, None)
        if self.holder == worker:
            self.holder, self.released_s = None, self.now_s

    @rule(worker=WORKERS)
    def step(self, worker: str) -> None:
        self.events += 1
        self.stepped[worker] = self.events
        self.arbiter.on_step(worker, self.now_s)

    @rule(worker=WORKERS)
    def idle(self, worker: str) -> None:
        self.stepped.pop(worker, None)
        self.arbiter.on_idle(worker, self.now_s)

    @rule(later_s=st.floats(0.0, 3.0))
    def wait(self, later_s: float) -> None:
        until_s = self.now_s + later_s
        while self.arbiter.next_tick_s <= until_s:
            self.now_s = max(self.now_s, self.arbiter.next_tick_s)
            if self.holder is not None and self.now_s >= self.granted_s + BOUNDS.turn_s_max:
                self.holder, self.released_s = None, self.now_s
            self.arbiter.on_tick(self.now_s)
        self.now_s = until_s

    @precondition(lambda self: self.asking)
    @rule()
    def everybody_has_a_turn_in_the_end(self) -> None:
        """If nobody asks any more, and nobody ever says that it is done."""
        for _ in range(2 * len(self.asking) + 2):
            if self.asking:
                self.wait(BOUNDS.turn_s_max + BOUNDS.step_wait_s)
        assert not self.asking

    @invariant()
    def both_know_the_same_holder(self) -> None:
        assert self.arbiter.holder == self.holder

    @invariant()
    def nobody_waits_where_nothing_is_to_be_waited_for(self) -> None:
        assert not self.asking or self.arbiter.next_tick_s < math.inf


TestTurns = Turns.TestCase
TestTurns.settings = settings(max_examples=100, stateful_step_count=30)
