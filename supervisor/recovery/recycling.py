"""When a worker that serves is replaced, though nothing has gone wrong yet. Pure.

Rule 1: after so many requests or tokens, or on a slope of its memory, each only where it is configured.
Rule 2: a replacement that could not be had is not tried again before `restart_backoff_max_s` have passed.
Rule 3: a leak is what stays when requests have ended, and goes on: of each twelfth of `leak_window_s` the least memory is
taken, and its slope has to be too much in both halves of that time, so that neither a long text nor a cache that fills
once looks like one. What can't be told from a leak, such as a load that grows all the time, recycles no more often than
`leak_recycle_interval_s`.
"""

import math
from collections import deque

from mlxsup.config.schema import Recovery
from mlxsup.supervisor.recovery.memory_truth import MemorySample, leak_bytes_per_hour

_PIECES = 12


class RecyclePolicy:
    """Of one model. Each question is answered with the reason for a replacement, or None."""

    def __init__(self, recovery: Recovery) -> None:
        self._recovery = recovery
        self._requests = 0
        self._tokens = 0
        self._not_before_s = -math.inf
        # Of each piece of the window, the newest last; and of the one that has not ended.
        self._least: deque[MemorySample] = deque(maxlen=_PIECES)
        self._least_now: MemorySample | None = None
        self._piece_ends_s = 0.0
        self._leaks = False
        self._leak_not_before_s = -math.inf

    def note_ready(self, now_s: float) -> None:
        """Another worker serves from now on."""
        self._requests = self._tokens = 0
        if self._leaks:
            self._leak_not_before_s = now_s + self._recovery.leak_recycle_interval_s
        self._leaks = False
        self._least.clear()
        self._least_now = None

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

    def after_sample(self, sample: MemorySample, now_s: float) -> str | None:
        """`sample` is the newest of the worker that serves: what a load takes is no leak."""
        bound = self._recovery.leak_bytes_per_hour_max
        if bound is None:
            return None
        if self._piece_ended(sample) and len(self._least) == _PIECES:
            least = list(self._least)
            halves = (least[: _PIECES // 2], least[_PIECES // 2 :])
            self._leaks = min(map(leak_bytes_per_hour, halves)) > bound
        if not self._leaks or now_s < max(self._not_before_s, self._leak_not_before_s):
            return None
        return "it leaks"

    def _piece_ended(self, sample: MemorySample) -> bool:
        """Keep the least of each piece; whether this sample is the first of another one."""
        least = self._least_now
        if least is not None and sample.at_s < self._piece_ends_s:
            if sample.resident_bytes < least.resident_bytes:
                self._least_now = sample
            return False
        self._least_now = sample
        self._piece_ends_s = sample.at_s + self._recovery.leak_window_s / _PIECES
        if least is None:
            return False
        self._least.append(least)
        return True
