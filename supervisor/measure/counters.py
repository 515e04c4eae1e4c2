"""What is counted of requests: overall, by model, by priority. Pure."""

from collections.abc import Iterable

import msgspec

from mlxsup.protocol.errors import ErrorKind
from mlxsup.protocol.service import Counters, Quantiles, Recent
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.measure.histogram import Histogram
from mlxsup.supervisor.measure.recent import RECENT_S, Times, Watch


class _Open(msgspec.Struct):
    """A request that has not ended, where its times are recorded, and up to where those between its tokens were."""

    request: GenerationRequest
    watch: Watch
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

    def accept(self) -> None:
        self._accepted += 1

    def refuse(self, kind: ErrorKind) -> None:
        self._refused[kind.value] = self._refused.get(kind.value, 0) + 1

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

    def read(self, queued: int, open_tokens: int, times: Times) -> Counters:
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
                window_s=RECENT_S,
                ttft_ms=_quantiles(times.ttft_ms),
                inter_token_ms=_quantiles(times.inter_token_ms),
            ),
        )


class RequestCounters:
    """`request_accepted` once and `request_ended` once for each request, or `request_refused`.

    Moments are of the monotonic clock.
    """

    def __init__(self) -> None:
        self._open: dict[int, _Open] = {}
        # By model and tier.
        self._watches: dict[tuple[str, str], Watch] = {}
        self._overall = _Group()
        self._models: dict[str, _Group] = {}
        self._priorities: dict[str, _Group] = {}

    def request_accepted(self, request: GenerationRequest) -> None:
        for group in self._groups(request):
            group.accept()
        if not request.ended:
            key = (request.model, request.priority.value)
            watch = self._watches.setdefault(key, Watch())
            self._open[request.id] = _Open(request, watch)

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
            opened.watch.inter_token_ms.record(stretch_ms, now_s)
        else:
            opened.watch.ttft_ms.record((now_s - request.marks.accepted_s) * 1000, now_s)
        opened.tokens, opened.since_s = tokens, now_s

    def request_ended(self, request: GenerationRequest, outcome: str, now_s: float) -> None:
        for group in self._groups(request):
            group.end(request, outcome)
        opened = self._open.pop(request.id, None)
        last_s = request.marks.last_token_s
        if opened is None or not opened.tokens or last_s is None:
            return
        rest = len(request.tokens) - opened.tokens
        if rest:
            opened.watch.inter_token_ms.record((last_s - opened.since_s) * 1000 / rest, now_s)

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
        model_tokens = _tokens((request.model, request) for request in requests)
        priority_tokens = _tokens((request.priority.value, request) for request in requests)
        overall_times, model_times, priority_times = self._read_times(now_s)
        return (
            self._overall.read(sum(queued_by_model.values()), sum(model_tokens.values()), overall_times),
            _read(self._models, queued_by_model, model_tokens, model_times),
            _read(self._priorities, queued_by_priority, priority_tokens, priority_times),
        )

    def _read_times(self, now_s: float) -> tuple[Times, dict[str, Times], dict[str, Times]]:
        """Overall, by model and by priority."""
        overall = Times()
        models: dict[str, Times] = {}
        priorities: dict[str, Times] = {}
        for (model, priority), watch in self._watches.items():
            times = watch.read(now_s)
            for together in (
                overall,
                models.setdefault(model, Times()),
                priorities.setdefault(priority, Times()),
            ):
                together.merge(times)
        return overall, models, priorities


def _tokens(named: Iterable[tuple[str, GenerationRequest]]) -> dict[str, int]:
    """Of the answers, by the requests' names."""
    tokens: dict[str, int] = {}
    for name, request in named:
        tokens[name] = tokens.get(name, 0) + len(request.tokens)
    return tokens


def _read(
    groups: dict[str, _Group], queued: dict[str, int], tokens: dict[str, int], times: dict[str, Times]
) -> dict[str, Counters]:
    return {
        name: group.read(queued.get(name, 0), tokens.get(name, 0), times.get(name) or Times())
        for name, group in groups.items()
    }


def _quantiles(histogram: Histogram) -> Quantiles:
    return Quantiles(
        count=histogram.count,
        p50=round(histogram.quantile(0.5), 3),
        p90=round(histogram.quantile(0.9), 3),
        p99=round(histogram.quantile(0.99), 3),
        max=round(histogram.max, 3),
    )
