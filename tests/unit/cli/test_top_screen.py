"""Frames of `mlxsup top`, from what a supervisor says."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from mlxsup.protocol.generation import Priority
from mlxsup.protocol.service import MemoryStats, ModelEntry, Recent, SloChange, SloStats, WorkerCounters
from mlxsup.supervisor.cli.top_columns import amount, fit, span, span_ms
from mlxsup.supervisor.cli.top_rates import Rate, Rates, Sight
from mlxsup.supervisor.cli.top_screen import Order, View, draw
from mlxsup.supervisor.pool.lifecycle import WorkerState
from tests.unit.cli.top_sights import activity, counters, entry, quantiles, sight, stats

RECENT = Recent(window_s=60.0, ttft_ms=quantiles(120.0, 1300.0), inter_token_ms=quantiles(23.4, 60.0))
BUSY = stats(
    3723.0,
    overall=counters(ended=7, refused=2, queued=44, recent=RECENT, resumed=1),
    models={"smollm2-135m": counters(ended=7, resumed=1, recent=RECENT)},
    priorities={"background": counters(ended=7, recent=RECENT)},
    workers={"smollm2-135m": WorkerCounters(deaths={"killed": 2, "aborted": 1}, restarts=3)},
    activities={
        "smollm2-135m": activity(
            {Priority.INTERACTIVE: 1, Priority.BACKGROUND: 7},
            {Priority.NORMAL: 20, Priority.BACKGROUND: 24},
            again=2,
            reserved_bytes=1_400_000_000,
            residency="resident",
            quarantined=1,
        )
    },
    memory=MemoryStats(capacity_bytes=4_000_000_000, reserved_bytes=1_400_000_000, free_bytes=2_600_000_000),
)
RATE = Rate(prompt_tokens=120.0, completion_tokens=410.4, ended=1.5, refused=0.0)
RATES = Rates(over_s=5.0, overall=RATE, models={"smollm2-135m": RATE}, priorities={"background": RATE})
BUSY_VIEW = View(sight=sight(entry("smollm2-135m"), of=BUSY), rates=RATES)


def frame(view: View, columns: int = 80, rows: int | None = 24) -> list[str]:
    return [line.plain for line in draw(view, columns, rows)]


def view_of(*models: ModelEntry, **changes: Any) -> View:
    return View(sight=sight(*models, of=stats(**changes)), rates=None)


def many(count: int) -> View:
    return view_of(*(entry(f"model-{number:02}") for number in range(count)))


def test_80_columns_have_what_matters_of_a_busy_supervisor() -> None:
    assert frame(BUSY_VIEW) == [
        "mlxsup  up 1:02:03, 62 MB, 2 connections",
        "requests: 8 running, 44 waiting (2 again), 7 ended, 2 refused, 1 resumed",
        "memory: 1.4 GB of 4.0 GB kept for models, 2.6 GB free  ━━━━━━━╌╌╌╌╌╌╌╌╌╌╌╌╌",
        "",
        "TIER                      RUN WAIT OUT/S  IN/S  TTFT   P99 TOKEN   P99",
        "all                         8   44   410   120 120ms  1.3s  23ms  60ms",
        "interactive                 1    0     0     0     -     -     -     -",
        "high                        0    0     0     0     -     -     -     -",
        "normal                      0   20     0     0     -     -     -     -",
        "background                  7   24   410   120 120ms  1.3s  23ms  60ms",
        "",
        "MODEL        STATE        RUN WAIT OUT/S  IN/S  TTFT   P99 TOKEN   P99  MEMORY",
        "smollm2-135m ready          8   44   410   120 120ms  1.3s  23ms  60ms  693 MB",
        "  run 1 interactive, 7 background; wait 20 normal, 24 background (2 again)",
        "  1.4 GB kept (resident); worker 3 is process 4711",
        "  died: 1 aborted, 2 killed; 3 restarts; 1 resumed; 1 quarantined",
        "rates over 5 s, times over 60 s; q ends, s sorts (as listed), ↑↓ scroll",
    ]


def test_40_columns_have_who_is_computed_who_waits_and_the_rate() -> None:
    shown = frame(BUSY_VIEW, columns=40)
    assert "MODEL        STATE        RUN WAIT OUT/S" in shown
    assert "smollm2-135m ready          8   44   410" in shown
    assert "normal                      0   20     0" in shown


def test_wide_ones_have_every_column() -> None:
    header = next(line for line in frame(BUSY_VIEW, columns=140) if line.startswith("MODEL"))
    assert " ".join(header.split()) == (
        "MODEL STATE RUN WAIT OUT/S IN/S TTFT P99 TOKEN P99 DONE/S REF/S MEMORY DIED"
    )


def test_before_the_second_look_no_rate_is_known_and_none_is_zero() -> None:
    shown = frame(View(sight=BUSY_VIEW.sight, rates=None))
    assert "smollm2-135m ready          8   44     -     - 120ms  1.3s  23ms  60ms  693 MB" in shown


def test_no_model_at_all_is_a_frame_too() -> None:
    assert frame(view_of())[-2].startswith("MODEL")
    assert frame(view_of(), rows=None)[-1].startswith("MODEL")


def test_a_supervisor_that_says_less_than_this_one_is_shown_without() -> None:
    (row,) = (line for line in frame(view_of(entry())) if line.startswith("m "))
    assert row.split() == ["m", "ready", *"--------", "693", "MB"]


def test_models_that_have_no_room_are_counted() -> None:
    shown = frame(many(30), rows=12)
    # The title, the requests and the header come first, the keys last.
    assert [line.split()[0] for line in shown[3:10]] == [f"model-{number:02}" for number in range(7)]
    assert shown[10] == "… 23 more"
    assert len(shown) == 12


def test_scrolling_shows_the_others_and_counts_on_both_sides() -> None:
    view = View(sight=many(30).sight, rates=None, skipped=25)
    shown = frame(view, rows=12)
    assert [line.split()[0] for line in shown[3:8]] == [f"model-{number:02}" for number in range(25, 30)]
    assert shown[8] == "… 25 before, 0 more"


def test_scrolled_beyond_the_end_the_last_model_stays() -> None:
    shown = frame(View(sight=many(3).sight, rates=None, skipped=99))
    assert any(line.startswith("model-02") for line in shown)


def test_all_models_are_in_a_frame_that_has_no_end() -> None:
    shown = frame(many(300), rows=None)
    assert sum(line.startswith("model-") for line in shown) == 300
    assert "q ends" not in shown[-1]


def test_of_a_name_that_is_too_long_both_ends_are_shown() -> None:
    name = "mlx-community/Qwen2.5-Coder-14B-Instruct-4bit"
    narrow = frame(view_of(entry(name), entry("mlx-community/Qwen2.5-Coder-14B-Instruct-8bit")), columns=40)
    assert [line.split()[0] for line in narrow[-3:-1]] == ["mlx-…ct-4bit"[:12], "mlx-…ct-8bit"[:12]]
    assert any(name in line for line in frame(view_of(entry(name)), columns=140))


@pytest.mark.parametrize(
    ("order", "names"),
    [
        (Order.LISTED, ["a", "b", "c"]),
        (Order.TOKENS, ["b", "a", "c"]),
        (Order.WAITING, ["c", "a", "b"]),
        (Order.MEMORY, ["b", "c", "a"]),
    ],
)
def test_models_are_sorted_as_asked(order: Order, names: list[str]) -> None:
    said = stats(activities={"c": activity(queued={Priority.HIGH: 3})})
    models = [entry("a", memory_bytes=None), entry("b", memory_bytes=9), entry("c", memory_bytes=5)]
    rates = Rates(over_s=1.0, overall=RATE, models={"b": RATE}, priorities={})
    shown = frame(View(sight=Sight(stats=said, models=models), rates=rates, order=order))
    assert [line.split()[0] for line in shown if line[:1] in {"a", "b", "c"} and line[1] == " "] == names


def test_the_orders_come_round() -> None:
    order = Order.LISTED
    seen = [order := order.next() for _ in Order]
    assert seen[-1] is Order.LISTED
    assert set(seen) == set(Order)


def test_why_nothing_newer_is_known_stands_below_what_was_known_last() -> None:
    shown = frame(View(sight=BUSY_VIEW.sight, rates=None, lost="the server is gone"))
    assert shown[-1] == "trying again: the server is gone"
    assert any(line.startswith("smollm2-135m ready") for line in shown)


def test_what_is_wrong_with_a_model_stands_below_it() -> None:
    down = entry("m", state="backoff", reason="killed (signal SIGKILL)", breaker="half_open", pid=None)
    shown = frame(view_of(down))
    assert [line.strip() for line in shown[-3:-1]] == ["breaker half-open", "killed (signal SIGKILL)"]


def test_a_model_that_has_no_memory_yet_says_so() -> None:
    shown = frame(view_of(entry(state="stopped"), activities={"m": activity(residency="waiting")}))
    assert "  waits for memory" in shown


def test_an_objective_is_counted_while_it_is_kept_and_told_in_full_while_it_is_not() -> None:
    kept = objective()
    broken = objective(state="acting", figure=3.14159, in_force=["shed background", "batch 4"])
    shown = frame(view_of(entry(), slo={"m": {"interactive": [kept, broken]}}))
    assert "1 of 2 objectives kept" in shown[0]
    assert "  interactive ttft_s 3.14, is to be 2; acting: shed background, batch 4" in shown


def objective(
    *, state: str = "ok", figure: float | None = 0.5, in_force: list[str] | None = None
) -> SloStats:
    return SloStats(
        objective="ttft_s",
        limit=2.0,
        figure=figure,
        samples=9,
        burn_short=0.0,
        burn_long=0.0,
        state=state,
        in_force=in_force or [],
        changes=[SloChange(ago_s=1.0, action="batch 4", undone=False, before=None, after=None)],
    )


@pytest.mark.parametrize("free_bytes", [-(10**9), 0, 10**9])
@pytest.mark.parametrize("capacity_bytes", [0, 10**9])
def test_the_ledger_is_drawn_whatever_it_has(free_bytes: int, capacity_bytes: int) -> None:
    memory = MemoryStats(capacity_bytes=capacity_bytes, reserved_bytes=2 * 10**9, free_bytes=free_bytes)
    line = frame(view_of(memory=memory))[2]
    assert line.count("━") + line.count("╌") == 20
    assert ("-1.0 GB free" in line) == (free_bytes < 0)


def test_what_a_terminal_would_obey_is_not_passed_on() -> None:
    shown = frame(view_of(entry("a\x1b[2Jb", state="failed", reason="no\x1b]0;title\x07\r\nway")))
    assert not any("\x1b" in line or "\x07" in line or "\r" in line or "\n" in line for line in shown)


NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=60)


@given(
    st.lists(st.tuples(NAMES, st.sampled_from(WorkerState), st.none() | NAMES), max_size=12),
    st.integers(1, 200),
    st.none() | st.integers(1, 60),
    st.integers(0, 15),
    st.none() | NAMES,
)
def test_no_frame_is_larger_than_the_terminal(
    models: list[tuple[str, WorkerState, str | None]],
    columns: int,
    rows: int | None,
    skipped: int,
    lost: str | None,
) -> None:
    entries = [entry(name, state=state.value, reason=reason) for name, state, reason in models]
    view = View(sight=Sight(stats=BUSY, models=entries), rates=RATES, skipped=skipped, lost=lost)
    shown = frame(view, columns, rows)
    assert all(cell_len(line) <= columns for line in shown)
    assert rows is None or len(shown) <= rows


@given(NAMES, st.integers(1, 40))
def test_a_name_is_cut_and_filled_to_its_cells_exactly(name: str, cells: int) -> None:
    assert cell_len(fit(name, cells)) == cells


@given(st.floats(0.0, 1e11))
def test_an_amount_never_takes_more_than_four_characters(value: float) -> None:
    assert len(amount(value)) <= 4


@given(st.floats(0.0, 3e10))
def test_a_time_never_takes_more_than_five_characters(value: float) -> None:
    assert len(span_ms(value)) <= 5


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (9, "9"), (9.94, "9.9"), (9.96, "10"), (999.4, "999"), (999.6, "1.0k"), (123456, "123k")],
)
def test_amounts(value: float, text: str) -> None:
    assert amount(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0ms"),
        (1.24, "1.2ms"),
        (999.4, "999ms"),
        (999.6, "1.0s"),
        (59_400, "59s"),
        (59_600, "1.0m"),
        (90_000, "1.5m"),
        (3_600_000, "1.0h"),
    ],
)
def test_times(value: float, text: str) -> None:
    assert span_ms(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5.9, "0:05"), (3723, "1:02:03"), (3 * 86400 + 5, "3 d 0:00:05"), (90061, "1 d 1:01:01")],
)
def test_how_long_it_is_up(seconds: float, text: str) -> None:
    assert span(seconds) == text
