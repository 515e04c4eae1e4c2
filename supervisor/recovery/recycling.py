"""When a worker that serves is replaced, though nothing has gone wrong yet. Pure.

Rule 1: after so many requests or tokens, or on a slope of its memory, each only where it is configured.
Rule 2: a replacement that could not be had is not tried again before `retry_s` have passed.
"""

import math

from mlxsup.config.schema import Recovery
from mlxsup.supervisor.recovery.memory_truth import MemorySample, leak_bytes_per_hour

# A slope over fewer says more of the last request than of a leak.
_LEAK_SAMPLES_MIN = 120


class RecyclePolicy:
    """Of one model. Each question is answered with the reason for a replacement, or None."""

    def __init__(self, recovery: Recovery) -> None:
        self._recovery = recovery
        self._requests = 0
        self._tokens = 0
        self._not_before_s = -math.inf

    def note_ready(self) -> None:
        """Another worker serves from now on."""
        self._requests = self._tokens = 0

    def note_refused(self, now_s: float) -> None:
        self._not_before_s = now_s + self._recovery.restart_backoff_max_s

    def after_request(self, tokens: int, now_s: float) -> str | None:
        """A request has ended that got so many tokens."""
        self._requests += 1
        self._tokens += tokens
        if now_s < self._not_before_s:
            return None
        requests_max, tokens_max = self._recovery.recycle_requests, self._recovery.recycle_tokens
        if requests_max is not None and self._requests >= requests_max:
            return "it has served its requests"
        if tokens_max is not None and self._tokens >= tokens_max:
            return "it has served its tokens"
        return None

    def after_sample(self, samples: list[MemorySample], now_s: float) -> str | None:
        """`samples` are of the worker since it is ready: what a load takes is no leak."""
        bound = self._recovery.leak_bytes_per_hour_max
        if bound is None or now_s < self._not_before_s or len(samples) < _LEAK_SAMPLES_MIN:
            return None
        return "it leaks" if leak_bytes_per_hour(samples) > bound else None
