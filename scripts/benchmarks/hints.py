"""Whether refusals told the truth about when to try again. Pure.

The truth is the time from a refusal until all requests that had been accepted before it were answered: all are of one tier
and one client here, so all of them were ahead of it.
"""

from collections.abc import Sequence

import msgspec

from scripts.benchmarks.figures import quantile
from scripts.benchmarks.traffic import Asked

_FACTOR = 2.0
# What messages of refusals have in common, by the name of the reason.
_REASONS = {"queue of this model is full": "full", "answer would come too late": "late"}


class Hint(msgspec.Struct, frozen=True):
    """Of one refusal, in milliseconds; `hint_ms` is None where it gave none. `begun_ms` is until all of them had begun."""

    hint_ms: int | None
    truth_ms: float
    begun_ms: float

    @property
    def is_true(self) -> bool:
        return self._is_near(self.truth_ms)

    @property
    def is_of_begins(self) -> bool:
        """True, too, or instead, of the time until all had begun."""
        return self._is_near(self.begun_ms)

    def _is_near(self, ms: float) -> bool:
        """Within a factor of two."""
        return self.hint_ms is not None and self.hint_ms <= _FACTOR * ms and ms <= _FACTOR * self.hint_ms


class Hints(msgspec.Struct, frozen=True):
    """Shares are 1.0 where there are none; the ratios, of a hint to the truth, are quantiles over all."""

    count: int
    true_share: float
    of_begins_share: float
    truth_p50_ms: float | None
    ratio_p05: float | None
    ratio_p50: float | None
    ratio_p95: float | None


def reason(asked: Asked) -> str:
    """Of a refusal: `full`, `late`, or else the kind of its error."""
    assert asked.error is not None
    return next((name for words, name in _REASONS.items() if words in asked.error.message), asked.error.kind)


def over_s(asked: Asked) -> float | None:
    """The moment at which one that was accepted was answered, with whatever; None for one that was refused at once."""
    if asked.error is not None and reason(asked) in _REASONS.values():
        return None
    return asked.ended_s


def began_s(asked: Asked) -> float:
    """When one that was accepted left the queue. One without a result left it with its first token, or with its end."""
    if asked.result is not None:
        return asked.sent_s + asked.result.timings.queue_ms / 1000
    return asked.ended_s if asked.first_s is None else asked.first_s


def check_hints(all_asked: Sequence[Asked], of: str) -> list[Hint]:
    """Of all refusals for the reason `of`; `all_asked` are in the order in which they were sent, all on one connection."""
    hints = []
    latest_s = latest_begin_s = 0.0
    for asked in all_asked:
        answered_s = over_s(asked)
        if answered_s is not None:
            latest_s = max(latest_s, answered_s)
            latest_begin_s = max(latest_begin_s, began_s(asked))
        elif reason(asked) == of:
            assert asked.error is not None
            hints.append(
                Hint(
                    asked.error.data.retry_after_ms,
                    truth_ms=max(0.0, latest_s - asked.ended_s) * 1000,
                    begun_ms=max(0.0, latest_begin_s - asked.ended_s) * 1000,
                )
            )
    return hints


def summarize(hints: Sequence[Hint]) -> Hints:
    ratios = [hint.hint_ms / max(hint.truth_ms, 1e-3) for hint in hints if hint.hint_ms is not None]
    return Hints(
        count=len(hints),
        true_share=_share([hint.is_true for hint in hints]),
        of_begins_share=_share([hint.is_of_begins for hint in hints]),
        truth_p50_ms=quantile([hint.truth_ms for hint in hints], 0.5) if hints else None,
        ratio_p05=quantile(ratios, 0.05) if ratios else None,
        ratio_p50=quantile(ratios, 0.5) if ratios else None,
        ratio_p95=quantile(ratios, 0.95) if ratios else None,
    )


def _share(which: Sequence[bool]) -> float:
    return sum(which) / len(which) if which else 1.0
