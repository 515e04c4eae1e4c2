from hypothesis import given
from hypothesis import strategies as st

from mlxsup.supervisor.measure.windowed import WindowedHistogram

WINDOW_S = 60.0
SLICE_S = WINDOW_S / 12

ARRIVALS = st.lists(st.tuples(st.floats(0.0, 20.0), st.floats(0.001, 100.0)), max_size=100)


@given(ARRIVALS, st.floats(0.0, 100.0))
def test_what_is_read_is_what_came_in_the_window_to_within_one_slice(
    arrivals: list[tuple[float, float]], later_s: float
) -> None:
    windowed = WindowedHistogram(WINDOW_S)
    now_s = 1000.0
    came: list[float] = []
    for gap_s, value in arrivals:
        now_s += gap_s
        came.append(now_s)
        windowed.record(value, now_s)
    now_s += later_s
    found = windowed.read(now_s).count

    assert found >= sum(at_s > now_s - WINDOW_S + SLICE_S for at_s in came)
    assert found <= sum(at_s > now_s - WINDOW_S - 1e-6 for at_s in came)


def test_however_much_is_recorded_it_keeps_no_more_than_its_slices() -> None:
    windowed = WindowedHistogram(WINDOW_S)
    for second in range(10_000):
        windowed.record(1.0, float(second))
    assert len(windowed._slices) == 12
    assert windowed.read(9_999.0).count == 60


def test_nothing_is_left_of_what_came_before_a_long_silence() -> None:
    windowed = WindowedHistogram(WINDOW_S)
    windowed.record(1.0, 0.0)
    assert windowed.read(59.0).count == 1
    assert windowed.read(60.0).count == 0
    windowed.record(2.0, 1e6)
    assert windowed.read(1e6).max == 2.0
