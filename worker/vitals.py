"""What the MLX thread last finished, as the heartbeat reports it.

One writer of the mark, the MLX thread, and one of `preparing_since_s`, the thread that prepares requests; the heartbeat
thread only reads, so that "alive but stuck" shows.
"""

import time
from typing import NamedTuple

import mlx.core as mx


class _Mark(NamedTuple):
    phase: str
    work: int
    at_s: float
    sequences: int
    active_bytes: int
    cache_bytes: int
    peak_bytes: int
    prefill_tokens: int
    prefill_tokens_per_s: float


class Vitals:
    def __init__(self) -> None:
        self._mark = _Mark("starting", 0, time.monotonic(), 0, 0, 0, 0, 0, 0.0)
        # Since when one request is being prepared, on the monotonic clock; None while there is none.
        self.preparing_since_s: float | None = None

    def advance(
        self,
        phase: str,
        work: int,
        *,
        sequences: int = 0,
        prefill_tokens: int = 0,
        prefill_tokens_per_s: float = 0.0,
    ) -> None:
        """The MLX thread has come to `work` units in `phase`: bytes of a load, steps of a batch.

        `prefill_tokens` are those that the step which begins now computes.
        """
        # One assignment: a reader never sees half of it.
        self._mark = _Mark(
            phase,
            work,
            time.monotonic(),
            sequences,
            mx.get_active_memory(),
            mx.get_cache_memory(),
            mx.get_peak_memory(),
            prefill_tokens,
            prefill_tokens_per_s,
        )

    def read(self) -> _Mark:
        return self._mark
