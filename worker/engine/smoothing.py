"""Times that are measured again and again. Pure."""

_SMOOTHING = 0.3


def smoothed(before_s: float, now_s: float) -> float:
    """A time that was measured again; `before_s` is 0.0 at the first time."""
    return now_s if not before_s else before_s + _SMOOTHING * (now_s - before_s)
