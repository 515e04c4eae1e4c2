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
        # How many values lie in each.
        self.buckets: dict[int, int] = {}
        self.count = 0
        self.max = 0.0

    def record(self, value: float) -> None:
        bucket = _bucket(value)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1
        self.count += 1
        self.max = max(self.max, value)

    def merge(self, other: "Histogram") -> None:
        """Add what the other one has, which stays as it is."""
        for bucket, count in other.buckets.items():
            self.buckets[bucket] = self.buckets.get(bucket, 0) + count
        self.count += other.count
        self.max = max(self.max, other.max)

    def count_above(self, bound: float) -> int:
        """How many values were recorded that are above, as far as `is_above` can tell."""
        highest = _bucket(bound)
        return sum(count for bucket, count in self.buckets.items() if bucket > highest)

    def share_above(self, bound: float) -> float:
        """The same as a share of all values; 0.0 when there are none."""
        return self.count_above(bound) / self.count if self.count else 0.0

    def quantile(self, q: float) -> float:
        """The value that a share `q` of the recorded ones does not exceed; 0.0 when there are none."""
        rank = math.ceil(q * self.count)
        seen = 0
        for bucket in sorted(self.buckets):
            seen += self.buckets[bucket]
            if seen >= rank:
                # The geometric middle of the bucket halves the error, and the largest value is known exactly.
                return min(self.max, _SMALLEST * math.exp((bucket - 0.5) * _LOG_GROWTH))
        return 0.0


def is_above(value: float, bound: float) -> bool:
    """As a histogram tells it: a value in the bound's own bucket, so up to 4% above it, is not."""
    return _bucket(value) > _bucket(bound)


def _bucket(value: float) -> int:
    if value <= _SMALLEST:
        return 0
    return min(1 + int(math.log(value / _SMALLEST) / _LOG_GROWTH), _BUCKETS_MAX)
