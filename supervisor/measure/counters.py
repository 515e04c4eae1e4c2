"""What is counted of requests: overall, by model, by priority."""

from mlxsup.protocol.service import Counters, Quantiles
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.measure.histogram import Histogram


class _Group:
    """Counters of the requests that have something in common."""

    def __init__(self) -> None:
        self._accepted = 0
        self._resumed = 0
        self._ended: dict[str, int] = {}
        self._prompt_tokens = 0
        self._completion_tokens = 0
        self._ttft_ms = Histogram()
        self._queue_ms = Histogram()
        self._inter_token_ms = Histogram()

    def accept(self) -> None:
        self._accepted += 1

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

    def read(self, queued: int) -> Counters:
        return Counters(
            requests_total=self._accepted,
            requests_active=self._accepted - sum(self._ended.values()),
            requests_queued=queued,
            requests_resumed=self._resumed,
            ended=dict(self._ended),
            prompt_tokens_total=self._prompt_tokens,
            completion_tokens_total=self._completion_tokens,
            ttft_ms=_quantiles(self._ttft_ms),
            queue_ms=_quantiles(self._queue_ms),
            inter_token_ms=_quantiles(self._inter_token_ms),
        )


class RequestCounters:
    """`request_accepted` once and `request_ended` once for each request."""

    def __init__(self) -> None:
        self._overall = _Group()
        self._models: dict[str, _Group] = {}
        self._priorities: dict[str, _Group] = {}

    def request_accepted(self, request: GenerationRequest) -> None:
        for group in self._groups(request):
            group.accept()

    def request_ended(self, request: GenerationRequest, outcome: str) -> None:
        for group in self._groups(request):
            group.end(request, outcome)

    def _groups(self, request: GenerationRequest) -> tuple[_Group, _Group, _Group]:
        return (
            self._overall,
            self._models.setdefault(request.model, _Group()),
            self._priorities.setdefault(request.priority.value, _Group()),
        )

    def read(
        self, queued_by_model: dict[str, int], queued_by_priority: dict[str, int]
    ) -> tuple[Counters, dict[str, Counters], dict[str, Counters]]:
        """Overall, by model and by priority; who waits is counted by the queues themselves."""
        return (
            self._overall.read(sum(queued_by_model.values())),
            {name: group.read(queued_by_model.get(name, 0)) for name, group in self._models.items()},
            {name: group.read(queued_by_priority.get(name, 0)) for name, group in self._priorities.items()},
        )


def _quantiles(histogram: Histogram) -> Quantiles:
    return Quantiles(
        count=histogram.count,
        p50=round(histogram.quantile(0.5), 3),
        p90=round(histogram.quantile(0.9), 3),
        p99=round(histogram.quantile(0.99), 3),
        max=round(histogram.max, 3),
    )
