"""What each model's workers hold of the machine's memory, and what is kept for them to grow into. Pure.

Rule 1: what was measured replaces what was estimated. Rule 2: a peak that was seen once makes a model wait for more room,
and never makes it one that can't be had: that is judged by what it holds when it has just been loaded.
"""

from collections.abc import Callable, Collection

import msgspec


class Footprint(msgspec.Struct):
    """Of one model's worker, in bytes; what is learnt of one serves for the next.

    `estimate_bytes` is for the process with its weights, `kv_bytes_max` the bound of its KV caches where there is one, and
    `prefix_bytes_max` of those that it keeps for requests to come.
    """

    estimate_bytes: int = 0
    kv_bytes_max: int = 0
    prefix_bytes_max: int = 0
    loaded_bytes: int | None = None
    peak_bytes: int = 0
    """Of the worker that lives, and of earlier ones the less the longer ago."""
    _life_peak_bytes: int = 0

    @property
    def least_bytes(self) -> int:
        """With less it can't serve."""
        return (self.estimate_bytes if self.loaded_bytes is None else self.loaded_bytes) + self.kv_bytes_max

    @property
    def usual_bytes(self) -> int:
        return max(self.least_bytes + self.prefix_bytes_max, self.peak_bytes)

    def note_resident(self, resident_bytes: int) -> None:
        self._life_peak_bytes = max(self._life_peak_bytes, resident_bytes)
        self.peak_bytes = max(self.peak_bytes, resident_bytes)

    def note_end(self) -> None:
        """One worker's life is over: a peak that it did not come near to counts half as much from now on."""
        if self._life_peak_bytes:
            self.peak_bytes = (self.peak_bytes + self._life_peak_bytes) // 2
        self._life_peak_bytes = 0


class Claim(msgspec.Struct):
    """`resident_bytes` is what its workers hold by now, `needed_bytes` what is kept for each of them."""

    needed_bytes: int
    workers: int = 1
    resident_bytes: int = 0

    @property
    def bytes(self) -> int:
        return max(self.needed_bytes * self.workers, self.resident_bytes)


class Ledger:
    """`available` is what the machine has left now, and `total_bytes` what it has at all.

    Without a budget the memory is shared with everything else on the machine: then what is free is what is available, less
    the headroom and what the workers may still grow by.
    """

    def __init__(
        self,
        *,
        budget_bytes: int | None,
        set_aside_bytes: int,
        headroom_bytes: int,
        total_bytes: int,
        available: Callable[[], int],
    ) -> None:
        """`set_aside_bytes` of the budget are for workers that have no model yet."""
        self.has_budget = budget_bytes is not None
        bound = total_bytes - headroom_bytes if budget_bytes is None else budget_bytes - set_aside_bytes
        self.capacity_bytes = max(0, bound)
        self._headroom_bytes = headroom_bytes
        self._available = available
        self._claims: dict[str, Claim] = {}

    def __contains__(self, model: str) -> bool:
        return model in self._claims

    def __len__(self) -> int:
        return len(self._claims)

    def open(self, model: str, needed_bytes: int) -> None:
        assert model not in self._claims
        self._claims[model] = Claim(needed_bytes)

    def close(self, model: str) -> None:
        self._claims.pop(model, None)

    def get(self, model: str) -> Claim | None:
        return self._claims.get(model)

    def claimed_bytes(self, models: Collection[str]) -> int:
        """By those of them that have a claim."""
        return sum(claim.bytes for model, claim in self._claims.items() if model in models)

    @property
    def reserved_bytes(self) -> int:
        """What is kept for all that have a claim."""
        return sum(claim.bytes for claim in self._claims.values())

    def free_bytes(self) -> int:
        """What nobody has a claim to; below zero when somebody holds more than was thought."""
        claims = self._claims.values()
        unclaimed = self.capacity_bytes - self.reserved_bytes
        if self.has_budget:
            return unclaimed
        growth = sum(claim.bytes - claim.resident_bytes for claim in claims)
        return min(unclaimed, self._available() - self._headroom_bytes - growth)
