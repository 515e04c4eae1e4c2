"""The one histogram: quantiles of a positive quantity within a fixed relative error. Pure.

Buckets grow geometrically, as in DDSketch (Masson, Rim, Lee 2019): the answer is within about 2% of the true
quantile, whatever the distribution, in bounded memory, and two histograms are merged by adding their counts.
"""

import math

_GROWTH = 1.04
_LOG_GROWTH = math.log(_GROWTH)
_SMALLEST = 1e-3
_BUCKETS_MAX = 800


class Histogram:
    """Values from 0.001 up, in any unit; smaller ones count as 0.001, and the last bucket has no upper end."""

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        self.count = 0
        self.max = 0.0

    def record(self, value: float) -> None:
        bucket = 0 if value <= _SMALLEST else 1 + int(math.log(value / _SMALLEST) / _LOG_GROWTH)
        bucket = min(bucket, _BUCKETS_MAX)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
        self.count += 1
        self.max = max(self.max, value)

    def quantile(self, q: float) -> float:
        """The value that a share `q` of the recorded ones does not exceed; 0.0 when there are none."""
        rank = math.ceil(q * self.count)
        seen = 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= rank:
                # The geometric middle of the bucket halves the error, and the largest value is known exactly.
                return min(self.max, _SMALLEST * math.exp((bucket - 0.5) * _LOG_GROWTH))
        return 0.0
