"""What is counted of requests: overall, by model, by priority. Pure."""

from collections.abc import Iterable

import msgspec

from mlxsup.protocol.errors import ErrorKind
from mlxsup.protocol.service import Counters, Quantiles, Recent
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.measure.histogram import Histogram
from mlxsup.supervisor.measure.windowed import WindowedHistogram

_RECENT_S = 60.0


class _Open(msgspec.Struct):
    """A request that has not ended, and up to where the times between its tokens were recorded."""

    request: GenerationRequest
    tokens: int = 0
    since_s: float = 0.0


class _Group:
    """Counters of the requests that have something in common."""

    def __init__(self) -> None:
        self._accepted = 0
        self._resumed = 0
        self._ended: dict[str, int] = {}
        self._refused: dict[str, int] = {}
        self._prompt_tokens = 0
        self._completion_tokens = 0
        self._ttft_ms = Histogram()
        self._queue_ms = Histogram()
        self._inter_token_ms = Histogram()
        self._recent_ttft_ms = WindowedHistogram(_RECENT_S)
        self._recent_inter_token_ms = WindowedHistogram(_RECENT_S)

    def accept(self) -> None:
        self._accepted += 1

    def refuse(self, kind: ErrorKind) -> None:
        self._refused[kind.value] = self._refused.get(kind.value, 0) + 1

    def note_first_token(self, ttft_ms: float, now_s: float) -> None:
        self._recent_ttft_ms.record(ttft_ms, now_s)

    def note_stretch(self, inter_token_ms: float, now_s: float) -> None:
        self._recent_inter_token_ms.record(inter_token_ms, now_s)

    def end(self, request: GenerationRequest, outcome: str) -> None:
        marks = request.marks
        self._ended[outcome] = self._ended.get(outcome, 0) + 1
        self._resumed += request.resumed > 0
        self._prompt_tokens += request.prompt_tokens
        self._completion_tokens += len(request.tokens)
        if marks.dispatched_s is not None:
            self._queue_ms.record((marks.dispatched_s - marks.accepted_s) * 1000)
        if marks.first_token_s is not None and marks.last_token_s is not None:
            self._ttft_ms.record((marks.first_token_s - marks.accepted_s) * 1000)
            if len(request.tokens) > 1:
                gaps = len(request.tokens) - 1
                self._inter_token_ms.record((marks.last_token_s - marks.first_token_s) * 1000 / gaps)

    def read(self, queued: int, open_tokens: int, now_s: float) -> Counters:
        """`open_tokens`: of the answers of those that have not ended."""
        return Counters(
            requests_total=self._accepted,
            requests_active=self._accepted - sum(self._ended.values()),
            requests_queued=queued,
            requests_resumed=self._resumed,
            ended=dict(self._ended),
            prompt_tokens_total=self._prompt_tokens,
            completion_tokens_total=self._completion_tokens + open_tokens,
            ttft_ms=_quantiles(self._ttft_ms),
            queue_ms=_quantiles(self._queue_ms),
            inter_token_ms=_quantiles(self._inter_token_ms),
            refused=dict(self._refused),
            recent=Recent(
                window_s=_RECENT_S,
                ttft_ms=_quantiles(self._recent_ttft_ms.read(now_s)),
                inter_token_ms=_quantiles(self._recent_inter_token_ms.read(now_s)),
            ),
        )


class RequestCounters:
    """`request_accepted` once and `request_ended` once for each request, or `request_refused`.

    Moments are of the monotonic clock.
    """

    def __init__(self) -> None:
        self._open: dict[int, _Open] = {}
        self._overall = _Group()
        self._models: dict[str, _Group] = {}
        self._priorities: dict[str, _Group] = {}

    def request_accepted(self, request: GenerationRequest) -> None:
        for group in self._groups(request):
            group.accept()
        if not request.ended:
            self._open[request.id] = _Open(request)

    def request_refused(self, request: GenerationRequest, kind: ErrorKind) -> None:
        for group in self._groups(request):
            group.refuse(kind)

    def request_progressed(self, request: GenerationRequest, now_s: float) -> None:
        """It has got its first token, or so many more that the time between them means something."""
        opened = self._open.get(request.id)
        if opened is None:
            return
        tokens = len(request.tokens)
        if opened.tokens:
            stretch_ms = (now_s - opened.since_s) * 1000 / (tokens - opened.tokens)
            for group in self._groups(request):
                group.note_stretch(stretch_ms, now_s)
        else:
            ttft_ms = (now_s - request.marks.accepted_s) * 1000
            for group in self._groups(request):
                group.note_first_token(ttft_ms, now_s)
        opened.tokens, opened.since_s = tokens, now_s

    def request_ended(self, request: GenerationRequest, outcome: str, now_s: float) -> None:
        opened = self._open.pop(request.id, None)
        groups = self._groups(request)
        for group in groups:
            group.end(request, outcome)
        rest = 0 if opened is None else len(request.tokens) - opened.tokens
        last_s = request.marks.last_token_s
        if opened is not None and opened.tokens and rest and last_s is not None:
            for group in groups:
                group.note_stretch((last_s - opened.since_s) * 1000 / rest, now_s)

    def _groups(self, request: GenerationRequest) -> tuple[_Group, _Group, _Group]:
        return (
            self._overall,
            self._models.setdefault(request.model, _Group()),
            self._priorities.setdefault(request.priority.value, _Group()),
        )

    def read(
        self, queued_by_model: dict[str, int], queued_by_priority: dict[str, int], now_s: float
    ) -> tuple[Counters, dict[str, Counters], dict[str, Counters]]:
        """Overall, by model and by priority; who waits is counted by the queues themselves."""
        requests = [opened.request for opened in self._open.values()]
        by_model = _tokens((request.model, request) for request in requests)
        by_priority = _tokens((request.priority.value, request) for request in requests)
        return (
            self._overall.read(sum(queued_by_model.values()), sum(by_model.values()), now_s),
            _read(self._models, queued_by_model, by_model, now_s),
            _read(self._priorities, queued_by_priority, by_priority, now_s),
        )


def _tokens(named: Iterable[tuple[str, GenerationRequest]]) -> dict[str, int]:
    """Of the answers, by the requests' names."""
    tokens: dict[str, int] = {}
    for name, request in named:
        tokens[name] = tokens.get(name, 0) + len(request.tokens)
    return tokens


def _read(
    groups: dict[str, _Group], queued: dict[str, int], tokens: dict[str, int], now_s: float
) -> dict[str, Counters]:
    return {
        name: group.read(queued.get(name, 0), tokens.get(name, 0), now_s) for name, group in groups.items()
    }


def _quantiles(histogram: Histogram) -> Quantiles:
    return Quantiles(
        count=histogram.count,
        p50=round(histogram.quantile(0.5), 3),
        p90=round(histogram.quantile(0.9), 3),
        p99=round(histogram.quantile(0.99), 3),
        max=round(histogram.max, 3),
    )
