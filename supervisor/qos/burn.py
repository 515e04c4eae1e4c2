"""How fast an objective's allowance of bad values is used up, over a short and a long window. Pure.

Rule 1: a burn rate is the share of bad values divided by the share that may be bad; at 1 the allowance is just used.
Rule 2: an objective is broken while it burns at `burn_rate_max` or more in both windows: the long one says that it
matters, the short one that it is still so. Rule 3: it is calm once both rates are below `recover_share` of that; in
between nothing begins and nothing ends. Rule 4: it is not broken by fewer than `samples_min` values in either window, nor
by fewer than three bad ones in the long one: one bad request in a quiet night, and its retry, are no trend. Of a quantity
that has one value a look no more are asked for than three quarters of the looks that a window has.

Multi-window, multi-burn-rate alerts are Google's: The Site Reliability Workbook (2018), chapter 5, "Alerting on SLOs".
"""

import msgspec

from mlxsup.config.schema import Qos
from mlxsup.supervisor.measure.histogram import Histogram
from mlxsup.supervisor.measure.windowed import WindowedHistogram
from mlxsup.supervisor.qos.objective import Objective

_BAD_MIN = 3
_LOOKS_SHARE = 0.75
_ROUNDING = 1e-9


class Burn(msgspec.Struct, frozen=True):
    """`samples` and `figure` are of the short window; the figure is None where nothing was recorded in it."""

    short: float
    long: float
    samples: int
    figure: float | None
    broken: bool
    calm: bool


class BurnMeter:
    """Of one objective, on a monotonic clock."""

    def __init__(self, objective: Objective, qos: Qos) -> None:
        self._objective = objective
        self._qos = qos
        self._short = WindowedHistogram(qos.short_window_s)
        self._long = WindowedHistogram(qos.long_window_s)
        self._since_mark = Histogram()
        self._samples_min = qos.samples_min
        if objective.per_look:
            looks = int(_LOOKS_SHARE * qos.short_window_s / qos.interval_s)
            self._samples_min = max(1, min(qos.samples_min, looks))

    def record(self, value: float, now_s: float) -> None:
        self._short.record(value, now_s)
        self._long.record(value, now_s)
        self._since_mark.record(value)

    def read(self, now_s: float) -> Burn:
        short, long = self._short.read(now_s), self._long.read(now_s)
        rates = [self._rate(short), self._rate(long)]
        qos = self._qos
        enough = min(short.count, long.count) >= self._samples_min
        trend = long.count_above(self._objective.bound) >= _BAD_MIN
        return Burn(
            short=rates[0],
            long=rates[1],
            samples=short.count,
            figure=self._objective.figure(short),
            # 6 of 20 is a little less than 6 times 0.05.
            broken=enough and trend and min(rates) >= qos.burn_rate_max * (1 - _ROUNDING),
            calm=max(rates) < qos.recover_share * qos.burn_rate_max or not any(rates),
        )

    def mark(self) -> None:
        """What is recorded from now on is what `figure_since_mark` is about."""
        self._since_mark = Histogram()

    def figure_since_mark(self) -> float | None:
        return self._objective.figure(self._since_mark)

    def _rate(self, histogram: Histogram) -> float:
        return histogram.share_above(self._objective.bound) / self._objective.budget_share
