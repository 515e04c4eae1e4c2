"""What the requests of one tier of one model get, as values for its objectives. Pure.

Rule 1: a time to the first token counts once: when it is known, or as soon as the request has waited for longer than its
objective allows. It runs from the request's arrival, through the queue and the load of a model. Rule 2: a stream gives one
value for each stretch between two looks, of at least eight tokens: the mean time between them; one that has stalled is seen
before it goes on. Rule 3: a rate is measured over the time in which any of the requests had its turn, about a look's worth
of it at a time. Rule 4: bad ends are the server's: its errors, and refusals for want of room; what clients cancel, get wrong
or gave too little time for doesn't count, and neither does what is refused because the tier is shed.
"""

from collections.abc import Callable

import msgspec

from mlxsup.protocol.errors import ErrorKind
from mlxsup.protocol.generation import FinishReason
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.measure.histogram import is_above
from mlxsup.supervisor.qos.objective import Kind, Objective, of_outcome, of_rate, of_seconds

Record = Callable[[Kind, float, float], None]
"""Of an objective's kind, a value, and the moment on the monotonic clock."""

_STRETCH_TOKENS_MIN = 8
# Of the time between two looks, which are never quite on time.
_RATE_SHARE = 0.9
_BAD = frozenset(
    {
        ErrorKind.WORKER_DIED,
        ErrorKind.OVERLOADED,
        ErrorKind.MODEL_LOAD_FAILED,
        ErrorKind.CIRCUIT_OPEN,
        ErrorKind.INTERNAL,
    }
)
_GOOD = frozenset(FinishReason) - {FinishReason.CANCELLED}


class _Track(msgspec.Struct):
    """Of one request that has not ended. A stretch begins after `stretch_tokens`, the last of which came at `stretch_s`."""

    request: GenerationRequest
    ttft_known: bool = False
    stretch_tokens: int = 0
    stretch_s: float = 0.0
    stretches: int = 0
    counted_tokens: int = 0


class TierSamples:
    def __init__(self, objectives: list[Objective], record: Record, interval_s: float, now_s: float) -> None:
        """`record` is only called for kinds of the `objectives`; `interval_s` lies between two looks."""
        self._bounds = {objective.kind: objective.bound for objective in objectives}
        self._record = record
        self._interval_s = interval_s
        self._tracks: dict[int, _Track] = {}
        self._looked_s = now_s
        # Of requests that have had their turn and ended since the last look: from when to when.
        self._turns: list[tuple[float, float]] = []
        self._busy_s = 0.0
        self._tokens = 0

    def begin(self, request: GenerationRequest) -> None:
        self._tracks[request.id] = _Track(request)

    def end(self, request: GenerationRequest, outcome: str, now_s: float, *, shed: bool) -> None:
        """Its one end, also a refusal; `outcome` is a finish reason or the kind of an error."""
        track = self._tracks.pop(request.id, None)
        if track is None:
            return
        self._look_at(track, now_s, ended=True)
        good = outcome in _GOOD
        if good and not track.ttft_known:
            # An answer without a token.
            self._note(Kind.TTFT, of_seconds(now_s - request.marks.accepted_s), now_s)
        if good or (outcome in _BAD and not (shed and outcome == ErrorKind.OVERLOADED)):
            self._note(Kind.ERRORS, of_outcome(bad=not good), now_s)
        if request.marks.dispatched_s is not None:
            self._turns.append((request.marks.dispatched_s, now_s))

    def look(self, now_s: float) -> None:
        """At all that have not ended."""
        turns = self._turns
        for track in self._tracks.values():
            self._look_at(track, now_s, ended=False)
            if track.request.marks.dispatched_s is not None:
                turns.append((track.request.marks.dispatched_s, now_s))
        self._busy_s += _covered_s(turns, self._looked_s)
        self._turns = []
        self._looked_s = now_s
        if self._busy_s >= _RATE_SHARE * self._interval_s:
            self._note(Kind.THROUGHPUT, of_rate(self._tokens, self._busy_s), now_s)
            self._busy_s, self._tokens = 0.0, 0

    def _look_at(self, track: _Track, now_s: float, *, ended: bool) -> None:
        tokens = len(track.request.tokens)
        self._tokens += tokens - track.counted_tokens
        track.counted_tokens = tokens
        self._look_at_ttft(track, now_s, ended=ended)
        if track.request.marks.first_token_s is not None:
            self._look_at_stretch(track, now_s, ended=ended)

    def _look_at_ttft(self, track: _Track, now_s: float, *, ended: bool) -> None:
        bound = self._bounds.get(Kind.TTFT)
        if track.ttft_known or bound is None:
            return
        marks = track.request.marks
        until_s = now_s if marks.first_token_s is None else marks.first_token_s
        waited = of_seconds(until_s - marks.accepted_s)
        # What ended before its time was up says nothing, or is told by how it ended.
        if marks.first_token_s is not None or (not ended and is_above(waited, bound)):
            track.ttft_known = True
            self._note(Kind.TTFT, waited, now_s)

    def _look_at_stretch(self, track: _Track, now_s: float, *, ended: bool) -> None:
        bound = self._bounds.get(Kind.GAP)
        marks = track.request.marks
        if bound is None or marks.first_token_s is None or marks.last_token_s is None:
            return
        if not track.stretch_tokens:
            track.stretch_tokens, track.stretch_s = 1, marks.first_token_s
        tokens = len(track.request.tokens) - track.stretch_tokens
        if tokens >= _STRETCH_TOKENS_MIN or (ended and tokens and not track.stretches):
            value = of_seconds((marks.last_token_s - track.stretch_s) / tokens)
        else:
            # The next token is still to come: the mean will be this at least.
            value = of_seconds((now_s - track.stretch_s) / (tokens + 1))
            if ended or not is_above(value, bound):
                return
        self._note(Kind.GAP, value, now_s)
        track.stretches += 1
        track.stretch_tokens, track.stretch_s = len(track.request.tokens), marks.last_token_s

    def _note(self, kind: Kind, value: float, now_s: float) -> None:
        if kind in self._bounds:
            self._record(kind, value, now_s)


def _covered_s(turns: list[tuple[float, float]], since_s: float) -> float:
    """The time since then in which there was at least one turn."""
    covered_s, end_s = 0.0, since_s
    for began_s, ended_s in sorted(turns):
        covered_s += max(0.0, ended_s - max(began_s, end_s))
        end_s = max(end_s, ended_s)
    return covered_s
