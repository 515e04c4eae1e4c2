"""How long a request would wait, and be computed, as things stand: for admission, and for the hint in a refusal. Pure."""

import math

import msgspec

_RETRY_MS_MAX = 24 * 3600 * 1000
# When nothing is known of the model's speed.
_RETRY_MS_UNKNOWN = 1000


class Outlook(msgspec.Struct, frozen=True):
    """`wait_s` until it has a place, `service_s` from there to its last token, if it is as long as most are at most."""

    wait_s: float
    service_s: float

    @property
    def seconds(self) -> float:
        return self.wait_s + self.service_s


def wait_s(*, running_s: float, ahead_s: float, typical_s: float, places: int, taken: int) -> float:
    """Until all that is ahead has begun, and a place is free.

    `running_s` is the work that is left of those that have a place, `ahead_s` that of those that wait and go first,
    `typical_s` that of a whole request, in seconds of the whole machine. When the last of them begins, those that run
    have on average half of theirs before them, as requests that begin one after another do; what is done until then is
    all the rest.
    """
    if taken < places:
        return 0.0
    left_s = min(running_s, typical_s * (taken - 1) / 2)
    return max(ahead_s + running_s - left_s, running_s / taken)


def retry_after_ms(outlook: Outlook | None) -> int:
    """As long as until what waits or runs now has been answered; a usual second where nothing is known."""
    if outlook is None:
        return _RETRY_MS_UNKNOWN
    return min(_RETRY_MS_MAX, max(1, math.ceil(outlook.seconds * 1000)))
