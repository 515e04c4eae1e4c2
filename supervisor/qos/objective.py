"""What a tier's requests are to get of a model: what counts as bad, and how much of it is allowed. Pure.

Every objective is a bound on one quantity of which less is better, so that one histogram serves them all: times in
milliseconds; an error as 1 and its absence as 0; a rate as its inverse, in microseconds a token.
"""

from enum import StrEnum

import msgspec

from mlxsup.config.schema import Slo
from mlxsup.supervisor.measure.histogram import Histogram

_FIGURE_DIGITS = 4
# Of no token at all within a time: slower than anything that gives one.
_NO_RATE_US = 1e12


class Kind(StrEnum):
    TTFT = "ttft_s"
    GAP = "inter_token_s"
    ERRORS = "error_share_max"
    THROUGHPUT = "tokens_per_s_min"


class Objective(msgspec.Struct, frozen=True):
    """`limit` in the unit of its key in the configuration; of all values a `budget_share` may be bad."""

    kind: Kind
    limit: float
    budget_share: float

    @property
    def bound(self) -> float:
        """As recorded: what is above it is bad."""
        match self.kind:
            case Kind.ERRORS:
                return of_outcome(bad=True) / 2
            case Kind.THROUGHPUT:
                return 1e6 / self.limit
        return of_seconds(self.limit)

    @property
    def per_look(self) -> bool:
        """Whether there is a value for each look at what runs; else there is one for each request."""
        return self.kind in (Kind.GAP, Kind.THROUGHPUT)

    def figure(self, histogram: Histogram) -> float | None:
        """How it stands, in the unit of `limit`: what all but the budget's share got. None if nobody got anything."""
        if not histogram.count:
            return None
        if self.kind is Kind.ERRORS:
            return round(histogram.share_above(self.bound), _FIGURE_DIGITS)
        value = histogram.quantile(1 - self.budget_share)
        return round(1e6 / value if self.kind is Kind.THROUGHPUT else value / 1000, _FIGURE_DIGITS)


def of_seconds(seconds: float) -> float:
    return seconds * 1000


def of_outcome(*, bad: bool) -> float:
    return float(bad)


def of_rate(tokens: int, seconds: float) -> float:
    return seconds * 1e6 / tokens if tokens else _NO_RATE_US


def objectives(slo: Slo) -> list[Objective]:
    """Those that are set."""
    found = []
    for kind in Kind:
        limit = getattr(slo, kind)
        if limit is not None:
            budget_share = limit if kind is Kind.ERRORS else 1 - slo.target_share
            found.append(Objective(kind, limit, budget_share))
    return found
