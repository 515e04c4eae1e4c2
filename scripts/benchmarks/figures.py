"""The arithmetic of the benchmarks. Pure."""

import math
from collections.abc import Sequence
from statistics import median

import msgspec


class Spread(msgspec.Struct, frozen=True):
    """Several measurements of one quantity."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(median(values), min(values), max(values))


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """The spread of the ratios of runs that followed each other: what else the machine did cancels out of each."""
    return Spread.of([over / under for over, under in zip(numerators, denominators, strict=True)])


def quantile(values: Sequence[float], q: float) -> float:
    """The smallest of `values` that a share `q` of them does not exceed."""
    return sorted(values)[max(0, math.ceil(q * len(values)) - 1)]
