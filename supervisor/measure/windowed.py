"""What was recorded within the last so many seconds, as one histogram. Pure."""

from collections import deque

from mlxsup.supervisor.measure.histogram import Histogram

_SLICES = 12


class WindowedHistogram:
    """A ring of slices: at most 12 histograms, whatever is recorded. `now_s` of a monotonic clock.

    What is read covers the window less the part of a slice, a twelfth of it, that has not begun yet.
    """

    def __init__(self, window_s: float) -> None:
        self._slice_s = window_s / _SLICES
        # The number of each slice since the clock's zero, and what was recorded in it; the newest last.
        self._slices: deque[tuple[int, Histogram]] = deque(maxlen=_SLICES)

    def record(self, value: float, now_s: float) -> None:
        number = self._number(now_s)
        if not self._slices or self._slices[-1][0] != number:
            self._slices.append((number, Histogram()))
        self._slices[-1][1].record(value)

    def read(self, now_s: float) -> Histogram:
        """All that was recorded in the window that ends now."""
        oldest = self._number(now_s) - _SLICES
        merged = Histogram()
        for number, histogram in self._slices:
            if number > oldest:
                merged.merge(histogram)
        return merged

    def _number(self, now_s: float) -> int:
        return int(now_s // self._slice_s)
