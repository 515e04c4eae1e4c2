"""Each way of getting nowhere is found within its budget, and what only takes long is left alone."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxsup.protocol.worker_link import Heartbeat
from mlxsup.supervisor.recovery.watchdog import Stall, Watchdog, WatchdogLimits

LIMITS = WatchdogLimits(
    heartbeat_interval_s=1.0,
    silence_s=10.0,
    load_stall_s=300.0,
    step_s=60.0,
    pickup_s=30.0,
    preparation_s=120.0,
    prefill_tokens_per_s_min=5.0,
)


def beat(phase: str, still_s: float = 0.0, *, prefill_tokens: int = 0, rate: float = 0.0) -> Heartbeat:
    return Heartbeat(
        phase=phase,
        work=0,
        still_s=still_s,
        sequences=0,
        active_bytes=0,
        cache_bytes=0,
        peak_bytes=0,
        prefill_tokens=prefill_tokens,
        prefill_tokens_per_s=rate,
    )


def beats_until_found(
    watchdog: Watchdog,
    phase: str,
    from_s: float,
    until_s: float,
    *,
    prefill_tokens: int = 0,
    rate: float = 0.0,
) -> tuple[float, Stall] | None:
    """Its MLX thread stands still from `from_s` on, and its heartbeats say so; when it is found, and what."""
    now_s = from_s
    while now_s < until_s:
        now_s += 1.0
        still = beat(phase, now_s - from_s, prefill_tokens=prefill_tokens, rate=rate)
        watchdog.note_heartbeat(still, now_s)
        if (stall := watchdog.check(now_s, process_stopped=False)) is not None:
            return now_s - from_s, stall
    return None


@pytest.mark.parametrize(
    ("phase", "budget_s"),
    [("load:weights", 300.0), ("load:warm", 300.0), ("starting", 300.0), ("batch", 60.0)],
)
def test_a_thread_that_hangs_is_found_within_the_budget_of_its_phase(phase: str, budget_s: float) -> None:
    found = beats_until_found(Watchdog(LIMITS, 0.0), phase, 0.0, 1000.0)

    assert found is not None
    took_s, stall = found
    assert took_s == budget_s
    assert stall.budget_s == budget_s


def test_an_idle_worker_owes_nothing() -> None:
    assert beats_until_found(Watchdog(LIMITS, 0.0), "idle", 0.0, 100_000.0) is None


@pytest.mark.parametrize("phase", ["load:weights", "idle", "batch", None])
def test_one_of_which_nothing_is_heard_is_found(phase: str | None) -> None:
    watchdog = Watchdog(LIMITS, 0.0)
    if phase is not None:
        watchdog.note_heartbeat(beat(phase), 5.0)
    heard_s = 0.0 if phase is None else 5.0

    assert watchdog.check(heard_s + 9.9, process_stopped=False) is None
    stall = watchdog.check(heard_s + 10.0, process_stopped=False)
    assert stall is not None
    assert "nothing was heard" in stall.reason


def test_a_stopped_process_is_found_after_two_missed_heartbeats() -> None:
    watchdog = Watchdog(LIMITS, 0.0)
    watchdog.note_heartbeat(beat("idle"), 5.0)

    assert watchdog.check(6.9, process_stopped=True) is None
    stall = watchdog.check(7.0, process_stopped=True)
    assert stall is not None
    assert "stopped" in stall.reason
    assert watchdog.check(7.0, process_stopped=False) is None


def test_work_that_an_idle_worker_does_not_take_up_is_found() -> None:
    watchdog = Watchdog(LIMITS, 0.0)
    watchdog.note_heartbeat(beat("idle"), 99.0)
    watchdog.note_sent(100.0)
    watchdog.note_sent(120.0)
    watchdog.note_heartbeat(beat("idle"), 129.0)

    assert watchdog.check(129.9, process_stopped=False) is None
    stall = watchdog.check(130.0, process_stopped=False)
    assert stall is not None
    assert stall.budget_s == 30.0


def test_one_answer_does_not_excuse_what_else_is_owed() -> None:
    watchdog = Watchdog(LIMITS, 0.0)
    watchdog.note_sent(100.0)
    watchdog.note_sent(101.0)
    watchdog.note_answer(110.0)
    watchdog.note_heartbeat(beat("idle", 30.0), 139.5)

    assert watchdog.check(139.9, process_stopped=False) is None
    assert watchdog.check(140.0, process_stopped=False) is not None
    watchdog.note_answer(140.0)
    watchdog.note_heartbeat(beat("idle", 300.0), 440.0)
    assert watchdog.check(440.0, process_stopped=False) is None


def test_a_long_step_that_has_just_ended_is_no_stall() -> None:
    watchdog = Watchdog(LIMITS, 0.0)
    watchdog.note_heartbeat(beat("batch", 59.9), 100.0)
    watchdog.note_frame(100.1)

    assert watchdog.check(100.9, process_stopped=False) is None
    # The next one hangs.
    watchdog.note_heartbeat(beat("batch", 59.0), 159.1)
    assert watchdog.check(160.09, process_stopped=False) is None
    assert watchdog.check(160.1, process_stopped=False) is not None


@given(
    st.floats(0.2, 1.0, exclude_min=False),
    st.floats(50.0, 1e5),
    st.integers(1, 200_000),
    st.integers(0, 20),
)
def test_a_prefill_at_a_fifth_of_the_measured_rate_is_never_called_a_stall(
    share: float, rate: float, tokens: int, measurements: int
) -> None:
    watchdog = Watchdog(LIMITS, 0.0)
    for _ in range(measurements):
        watchdog.note_heartbeat(beat("batch", rate=rate), 0.0)
    takes_s = tokens / (rate * share) if measurements else tokens / LIMITS.prefill_tokens_per_s_min
    for at_s in (takes_s / 3, takes_s / 2, takes_s):
        still = beat("batch", at_s, prefill_tokens=tokens, rate=rate if measurements else 0.0)
        watchdog.note_heartbeat(still, at_s)
        assert watchdog.check(at_s, process_stopped=False) is None


@given(st.floats(5.0, 1e5), st.integers(0, 10_000))
def test_a_prefill_that_hangs_is_found_at_a_tenth_of_the_measured_rate(rate: float, tokens: int) -> None:
    watchdog = Watchdog(LIMITS, 0.0)
    watchdog.note_heartbeat(beat("batch", rate=rate), 0.0)
    budget_s = 60.0 + tokens / max(5.0, rate / 10)
    watchdog.note_heartbeat(beat("batch", budget_s, prefill_tokens=tokens, rate=rate), budget_s)

    stall = watchdog.check(budget_s, process_stopped=False)
    assert stall is not None
    assert stall.budget_s == pytest.approx(budget_s)


def test_the_measured_rate_follows_slowly() -> None:
    watchdog = Watchdog(LIMITS, 0.0)
    watchdog.note_heartbeat(beat("batch", rate=1000.0), 0.0)
    # One slow step after fast ones: 1000 + 0.2 * (100 - 1000) = 820, a tenth of which is 82.
    watchdog.note_heartbeat(beat("batch", 70.0, prefill_tokens=820, rate=100.0), 70.0)

    stall = watchdog.check(70.0, process_stopped=False)
    assert stall is not None
    assert stall.budget_s == pytest.approx(70.0)


@given(st.lists(st.tuples(st.floats(0.0, 0.9), st.sampled_from(["step", "beat"])), max_size=60))
def test_a_worker_that_gets_on_is_never_given_up(events: list[tuple[float, str]]) -> None:
    watchdog = Watchdog(LIMITS, 0.0)
    watchdog.note_sent(0.0)
    now_s = moved_s = 0.0
    for pause_s, event in events:
        now_s += pause_s
        assert watchdog.check(now_s, process_stopped=False) is None
        if event == "step":
            moved_s = now_s
            watchdog.note_frame(now_s)
        else:
            watchdog.note_heartbeat(beat("batch", now_s - moved_s), now_s)


def test_a_supervisor_that_was_away_itself_blames_nobody_for_that_time() -> None:
    watchdog = Watchdog(LIMITS, 0.0)
    for now_s in (1.0, 2.0, 3.0):
        watchdog.note_heartbeat(beat("batch"), now_s)
        watchdog.note_look(now_s)
    watchdog.note_sent(3.0)

    # As a machine that was frozen for an hour with everything on it.
    watchdog.note_look(3603.0)
    assert watchdog.check(3603.0, process_stopped=False) is None
    watchdog.note_heartbeat(beat("batch", still_s=3600.0), 3604.0)
    watchdog.note_look(3604.0)
    assert watchdog.check(3604.0, process_stopped=False) is None


def test_after_the_supervisors_absence_a_hang_is_found_within_its_budget() -> None:
    watchdog = Watchdog(LIMITS, 0.0)
    watchdog.note_look(3600.0)
    for now_s in range(3601, 3610):
        watchdog.note_look(now_s)
        assert watchdog.check(now_s, process_stopped=False) is None

    watchdog.note_look(3610.0)
    assert watchdog.check(3610.0, process_stopped=False) is not None


MOMENTS_S = st.floats(0.0, 100.0)


@given(
    phase=st.sampled_from(["load:weights", "idle", "batch", None]),
    beat_s=MOMENTS_S,
    still_s=MOMENTS_S,
    sent_s=st.none() | MOMENTS_S,
    prefill_tokens=st.integers(0, 5000),
)
def test_the_deadline_is_the_moment_from_which_on_a_check_finds_something(
    phase: str | None, beat_s: float, still_s: float, sent_s: float | None, prefill_tokens: int
) -> None:
    watchdog = Watchdog(LIMITS, 0.0)
    if phase is not None:
        watchdog.note_heartbeat(beat(phase, still_s, prefill_tokens=prefill_tokens), beat_s)
    if sent_s is not None:
        watchdog.note_sent(sent_s)

    deadline_s = watchdog.deadline_s
    assert watchdog.check(deadline_s - 1e-6, process_stopped=False) is None
    # Also to the last bit: whoever sleeps until then and finds nothing would look again without end.
    assert watchdog.check(deadline_s, process_stopped=False) is not None


def test_what_an_earlier_worker_measured_holds_from_the_beginning() -> None:
    """At a rate of 50 a tenth is the least rate; at 500 a prompt of 500 tokens gets 10 s instead of 100."""
    budgets_s = []
    for rate in (None, 50.0, 500.0):
        watchdog = Watchdog(LIMITS, 0.0, rate)
        watchdog.note_heartbeat(beat("batch", prefill_tokens=500), 0.0)
        watchdog.note_heartbeat(beat("batch", 1000.0, prefill_tokens=500), 1000.0)
        stall = watchdog.check(1000.0, process_stopped=False)
        assert stall is not None
        budgets_s.append(stall.budget_s)

    assert budgets_s == [160.0, 160.0, 70.0]


def test_a_rate_that_is_only_said_again_weighs_nothing() -> None:
    watchdog = Watchdog(LIMITS, 0.0)
    for now_s, rate in enumerate([1000.0, *[500.0] * 50]):
        watchdog.note_heartbeat(beat("batch", rate=rate), float(now_s))

    assert watchdog.prefill_tokens_per_s == pytest.approx(900.0)


def preparing(watchdog: Watchdog, from_s: int, until_s: int) -> list[float]:
    """One request is prepared all the time; when that is found to take too long."""
    found = []
    for now_s in range(from_s, until_s):
        watchdog.note_heartbeat(
            msgspec.structs.replace(beat("idle"), preparing_s=now_s - from_s + 0.5), float(now_s)
        )
        if watchdog.check(now_s, process_stopped=False):
            found.append(now_s - from_s + 0.5)
    return found


def test_what_waits_behind_texts_that_take_long_to_prepare_makes_no_stall() -> None:
    watchdog = Watchdog(LIMITS, 0.0)
    watchdog.note_sent(0.0)
    for began_s in (0, 100, 200):
        assert preparing(watchdog, began_s, began_s + 100) == []
    # The thread of MLX has not taken it up yet, and has its time for that.
    for now_s in range(300, 329):
        watchdog.note_heartbeat(beat("idle"), float(now_s))
        assert watchdog.check(now_s, process_stopped=False) is None
    watchdog.note_heartbeat(beat("idle"), 330.0)
    assert watchdog.check(330.0, process_stopped=False) is not None


def test_one_text_that_is_prepared_for_ever_is_found() -> None:
    watchdog = Watchdog(LIMITS, 0.0)
    watchdog.note_sent(0.0)

    assert preparing(watchdog, 0, 200)[0] == 120.5
