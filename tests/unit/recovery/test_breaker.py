"""The breaker, and a simple model of it that a state machine holds it against."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mlxsup.supervisor.recovery.breaker import Admission, BreakerLimits, BreakerState, CircuitBreaker, Refusal

LIMITS = BreakerLimits(
    consecutive_max=3, sample=20, sample_min=5, fault_share=0.5, open_s=10.0, open_max_s=35.0, successes=2
)


def closed() -> CircuitBreaker:
    return CircuitBreaker(LIMITS)


def admit(breaker: CircuitBreaker, now_s: float) -> Admission:
    admission = breaker.admit(now_s)
    assert isinstance(admission, Admission)
    return admission


def refuse(breaker: CircuitBreaker, now_s: float) -> Refusal:
    refusal = breaker.admit(now_s)
    assert isinstance(refusal, Refusal)
    return refusal


def opened(times: int = 1) -> CircuitBreaker:
    """Opened at 0 for the first time; then each time at once again, by its probe."""
    breaker = closed()
    for _ in range(3):
        breaker.note_fault(0.0)
    now_s = 0.0
    for _ in range(times - 1):
        now_s += 1000.0
        breaker.settle(admit(breaker, now_s), fault=True, now_s=now_s)
    return breaker


def settle(breaker: CircuitBreaker, *faults: bool | None, now_s: float = 0.0) -> None:
    for fault in faults:
        breaker.settle(admit(breaker, now_s), fault=fault, now_s=now_s)


def test_three_faults_in_a_row_open_it() -> None:
    breaker = closed()
    settle(breaker, True, True)
    assert breaker.state(0.0) is BreakerState.CLOSED
    settle(breaker, True)

    assert breaker.state(0.0) is BreakerState.OPEN
    assert refuse(breaker, 4.0).retry_after_s == 6.0


def test_a_success_between_faults_begins_the_row_anew_and_an_end_that_says_nothing_does_not() -> None:
    breaker = closed()
    settle(breaker, False, False, False, False, True, True, False, True, True)
    assert breaker.state(0.0) is BreakerState.CLOSED
    settle(breaker, None)
    assert breaker.state(0.0) is BreakerState.CLOSED
    settle(breaker, True)
    assert breaker.state(0.0) is BreakerState.OPEN


def test_half_of_the_last_ends_open_it_and_fewer_than_the_sample_say_nothing() -> None:
    breaker = closed()
    settle(breaker, True, False, True, False)
    assert breaker.state(0.0) is BreakerState.CLOSED
    settle(breaker, True)
    assert breaker.state(0.0) is BreakerState.OPEN


def test_only_the_last_ends_count_for_the_share() -> None:
    breaker = closed()
    settle(breaker, *[False] * 30)
    # Ten of the last twenty are reached with the nineteenth, two faults and two successes in turn.
    settle(breaker, *[True, True, False, False] * 4, True)
    assert breaker.state(0.0) is BreakerState.CLOSED
    settle(breaker, True)
    assert breaker.state(0.0) is BreakerState.OPEN


def test_it_opens_for_twice_as_long_each_time_up_to_a_bound() -> None:
    waits = []
    for times in range(1, 6):
        breaker = opened(times)
        waits.append(refuse(breaker, 1000.0 * (times - 1)).retry_after_s)

    assert waits == [10.0, 20.0, 35.0, 35.0, 35.0]


def test_one_probe_at_a_time_gets_through_once_its_time_is_up() -> None:
    breaker = opened()
    refuse(breaker, 9.9)
    probe = admit(breaker, 10.0)

    assert breaker.state(10.0) is BreakerState.HALF_OPEN
    assert refuse(breaker, 10.0).retry_after_s is not None
    breaker.settle(probe, fault=None, now_s=11.0)
    probe = admit(breaker, 11.0)
    breaker.settle(probe, fault=False, now_s=11.0)
    assert breaker.state(11.0) is BreakerState.HALF_OPEN
    breaker.settle(admit(breaker, 11.0), fault=False, now_s=12.0)
    assert breaker.state(12.0) is BreakerState.CLOSED


def test_a_probe_that_fails_opens_it_again() -> None:
    breaker = opened()
    breaker.settle(admit(breaker, 10.0), fault=False, now_s=10.0)
    breaker.settle(admit(breaker, 10.0), fault=True, now_s=12.0)

    assert breaker.state(12.0) is BreakerState.OPEN
    assert refuse(breaker, 12.0).retry_after_s == 20.0


def test_once_it_has_closed_by_itself_it_opens_for_the_shortest_time_again() -> None:
    breaker = opened(3)
    settle(breaker, False, False, now_s=5000.0)
    for _ in range(3):
        breaker.note_fault(5000.0)

    assert refuse(breaker, 5000.0).retry_after_s == 10.0


@pytest.mark.parametrize("fault", [True, False])
def test_what_was_let_through_before_a_change_no_longer_counts(fault: bool) -> None:
    breaker = closed()
    late = [admit(breaker, 0.0) for _ in range(3)]
    for _ in range(3):
        breaker.note_fault(0.0)
    assert breaker.state(10.0) is BreakerState.HALF_OPEN
    for admission in late:
        breaker.settle(admission, fault=fault, now_s=10.0)

    assert breaker.state(10.0) is BreakerState.HALF_OPEN
    assert admit(breaker, 10.0).generation > late[0].generation


def test_a_late_end_does_not_let_a_second_probe_through() -> None:
    breaker = closed()
    late = admit(breaker, 0.0)
    for _ in range(3):
        breaker.note_fault(0.0)
    admit(breaker, 10.0)
    breaker.settle(late, fault=None, now_s=10.0)

    refuse(breaker, 10.0)


def test_forced_open_it_refuses_all_for_ever_until_it_is_reset() -> None:
    breaker = closed()
    breaker.force_open()
    assert refuse(breaker, 1e9).retry_after_s is None
    breaker.forgive()
    assert breaker.state(1e9) is BreakerState.FORCED_OPEN
    breaker.reset()
    admit(breaker, 1e9)


def test_disabled_it_counts_nothing() -> None:
    breaker = closed()
    breaker.disable()
    settle(breaker, *[True] * 100)
    breaker.note_fault(0.0)
    breaker.forgive()

    assert breaker.state(0.0) is BreakerState.DISABLED


def test_forgiven_it_is_closed_as_new() -> None:
    breaker = opened(3)
    breaker.forgive()
    settle(breaker, True, True, now_s=3000.0)
    assert breaker.state(3000.0) is BreakerState.CLOSED
    settle(breaker, True, now_s=3000.0)
    assert refuse(breaker, 3000.0).retry_after_s == 10.0


def test_by_a_window_so_many_faults_open_it_whatever_goes_well_between() -> None:
    breaker = CircuitBreaker(BreakerLimits(window_s=600.0, faults_max=3))
    for minute in range(3):
        assert breaker.state(60.0 * minute) is BreakerState.CLOSED
        settle(breaker, *[False] * 50, now_s=60.0 * minute)
        breaker.note_fault(60.0 * minute)

    assert breaker.state(120.0) is BreakerState.OPEN
    settle(breaker, False, False, now_s=130.0)
    assert breaker.state(130.0) is BreakerState.CLOSED
    breaker.note_fault(130.0)
    breaker.note_fault(130.0)
    assert breaker.state(130.0) is BreakerState.CLOSED


def test_by_a_window_faults_that_lie_further_apart_never_open_it() -> None:
    breaker = CircuitBreaker(BreakerLimits(window_s=600.0, faults_max=3))
    for number in range(100):
        breaker.note_fault(301.0 * number)

    assert breaker.state(301.0 * 99) is BreakerState.CLOSED


class Against(RuleBasedStateMachine):
    """The model: a list of ends since the last change, and when it opened how often. No generations, no deque."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = closed()
        self.now_s = 0.0
        self.state = "closed"
        self.ends: list[bool] = []
        self.openings = 0
        self.opened_s = 0.0
        # Let through since the last change; the others are late.
        self.fresh: list[Admission] = []
        self.late: list[Admission] = []

    def change(self, state: str) -> None:
        self.state = state
        self.ends = []
        self.late += self.fresh
        self.fresh = []

    def open_s(self) -> float:
        return min(35.0, 10.0 * (1 << (self.openings - 1)))

    def fault_or_not(self, fault: bool) -> None:
        self.ends.append(fault)
        if self.state == "half_open":
            if fault:
                self.open()
            elif len(self.ends) == 2:
                self.openings = 0
                self.change("closed")
        elif self.state == "closed":
            last = self.ends[-20:]
            share = len(last) >= 5 and 2 * sum(last) >= len(last)
            if fault and (self.ends[-3:] == [True] * 3 or share):
                self.open()

    def open(self) -> None:
        self.openings += 1
        self.opened_s = self.now_s
        self.change("open")

    @rule(seconds=st.sampled_from([0.0, 1.0, 9.0, 10.0, 35.0]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        if self.state == "open" and self.now_s - self.opened_s >= self.open_s():
            self.change("half_open")

    @rule()
    def admit(self) -> None:
        admitted = self.breaker.admit(self.now_s)
        free = self.state in ("closed", "disabled") or (self.state == "half_open" and not self.fresh)
        assert isinstance(admitted, Admission) == free
        if isinstance(admitted, Admission):
            self.fresh.append(admitted)
        elif self.state == "open":
            assert admitted.retry_after_s == pytest.approx(self.opened_s + self.open_s() - self.now_s)
        else:
            assert (admitted.retry_after_s is None) == (self.state == "forced_open")

    @precondition(lambda self: self.fresh)
    @rule(fault=st.sampled_from([True, False, None]), data=st.data())
    def settle(self, fault: bool | None, data: st.DataObject) -> None:
        admission = self.fresh.pop(data.draw(st.integers(0, len(self.fresh) - 1)))
        self.breaker.settle(admission, fault=fault, now_s=self.now_s)
        if fault is not None:
            self.fault_or_not(fault)

    @precondition(lambda self: self.late)
    @rule(fault=st.sampled_from([True, False, None]))
    def settle_late(self, fault: bool | None) -> None:
        self.breaker.settle(self.late.pop(), fault=fault, now_s=self.now_s)

    @rule()
    def die(self) -> None:
        self.breaker.note_fault(self.now_s)
        if self.state in ("closed", "half_open"):
            self.fault_or_not(True)

    @rule(action=st.sampled_from(["force_open", "disable", "reset", "forgive"]))
    def by_hand(self, action: str) -> None:
        getattr(self.breaker, action)()
        if action == "force_open":
            self.change("forced_open")
        elif action == "disable":
            self.change("disabled")
        elif action == "reset" or self.state not in ("forced_open", "disabled"):
            self.openings = 0
            self.change("closed")

    @invariant()
    def agree(self) -> None:
        assert self.breaker.state(self.now_s) == self.state


TestAgainstTheModel = Against.TestCase
