"""How long first tokens took lately, and the time between tokens. Pure."""

from mlxsup.supervisor.measure.histogram import Histogram
from mlxsup.supervisor.measure.windowed import WindowedHistogram

RECENT_S = 60.0


class Times:
    """In milliseconds, of what is recent."""

    def __init__(self) -> None:
        self.ttft_ms = Histogram()
        self.inter_token_ms = Histogram()

    def merge(self, other: "Times") -> None:
        self.ttft_ms.merge(other.ttft_ms)
        self.inter_token_ms.merge(other.inter_token_ms)


class Watch:
    """Times of the requests of one model and tier: each is recorded once, and merged with others when somebody asks."""

    def __init__(self) -> None:
        self.ttft_ms = WindowedHistogram(RECENT_S)
        self.inter_token_ms = WindowedHistogram(RECENT_S)

    def read(self, now_s: float) -> Times:
        times = Times()
        times.ttft_ms = self.ttft_ms.read(now_s)
        times.inter_token_ms = self.inter_token_ms.read(now_s)
        return times
