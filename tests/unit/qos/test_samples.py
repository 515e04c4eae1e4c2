"""What counts for an objective, and when it is known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxsup.protocol.errors import ErrorKind
from mlxsup.protocol.generation import FinishReason, Priority
from mlxsup.protocol.worker_link import Generated
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.qos.objective import Kind, Objective
from mlxsup.supervisor.qos.samples import TierSamples
from tests.fakes.collecting_sink import CollectingSink
from tests.fakes.requests import make_request

LOOK_S = 5.0
OBJECTIVES = [
    Objective(Kind.TTFT, 2.0, 0.05),
    Objective(Kind.GAP, 0.5, 0.05),
    Objective(Kind.ERRORS, 0.01, 0.01),
    Objective(Kind.THROUGHPUT, 10.0, 0.05),
]


class Bench:
    """Its clock begins at 100 s, and is looked at whenever it is a multiple of 5 s."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.recorded: dict[Kind, list[float]] = {kind: [] for kind in Kind}
        self.samples = TierSamples(OBJECTIVES, self._record, LOOK_S, self.now_s)

    def _record(self, kind: Kind, value: float, now_s: float) -> None:
        assert now_s == self.now_s
        self.recorded[kind].append(value)

    def begin(self) -> GenerationRequest:
        request = make_request(CollectingSink(), tokens=1000, priority=Priority.NORMAL, now_s=self.now_s)
        self.samples.begin(request)
        return request

    def wait(self, seconds: float) -> None:
        until_s = self.now_s + seconds
        while (next_s := (self.now_s // LOOK_S + 1) * LOOK_S) <= until_s:
            self.now_s = next_s
            self.samples.look(next_s)
        self.now_s = until_s

    def start(self, request: GenerationRequest) -> None:
        request.marks.dispatched_s = self.now_s

    def stream(self, request: GenerationRequest, tokens: int, every_s: float) -> None:
        for _ in range(tokens):
            self.wait(every_s)
            request.deliver("x", [1], self.now_s)

    def end(
        self, request: GenerationRequest, outcome: str = FinishReason.STOP.value, *, shed: bool = False
    ) -> None:
        self.samples.end(request, outcome, self.now_s, shed=shed)

    @property
    def ttft_s(self) -> list[float]:
        return [value / 1000 for value in self.recorded[Kind.TTFT]]

    @property
    def gaps_s(self) -> list[float]:
        return [value / 1000 for value in self.recorded[Kind.GAP]]

    @property
    def rates(self) -> list[float]:
        return [1e6 / value for value in self.recorded[Kind.THROUGHPUT]]

    @property
    def errors(self) -> list[float]:
        return self.recorded[Kind.ERRORS]


def test_a_request_has_one_time_to_its_first_token() -> None:
    bench = Bench()
    request = bench.begin()
    bench.wait(1.0)
    bench.stream(request, 100, 0.2)
    bench.end(request)
    assert bench.ttft_s == [pytest.approx(1.2)]


def test_one_that_waits_past_its_target_counts_before_it_has_a_token_and_only_once() -> None:
    bench = Bench()
    request = bench.begin()
    bench.wait(5.0)
    assert bench.ttft_s == [pytest.approx(5.0)]
    bench.wait(20.0)
    bench.stream(request, 3, 0.1)
    bench.end(request)
    assert len(bench.ttft_s) == 1


@pytest.mark.parametrize("outcome", [FinishReason.CANCELLED.value, ErrorKind.WORKER_DIED.value])
def test_one_that_ended_before_its_time_was_up_has_none(outcome: str) -> None:
    bench = Bench()
    request = bench.begin()
    bench.wait(1.0)
    bench.end(request, outcome)
    assert bench.ttft_s == []


def test_the_whole_answer_is_the_first_of_one_without_tokens() -> None:
    bench = Bench()
    request = bench.begin()
    bench.wait(1.5)
    bench.end(request)
    assert bench.ttft_s == [pytest.approx(1.5)]


def test_a_stream_gives_the_mean_gap_of_each_stretch_between_looks() -> None:
    bench = Bench()
    request = bench.begin()
    bench.stream(request, 50, 0.1)
    bench.stream(request, 25, 0.2)
    bench.stream(request, 25, 0.4)
    bench.wait(0.01)
    assert bench.gaps_s == [pytest.approx(value, rel=0.05) for value in (0.1, 0.2, 0.4, 0.4)]
    bench.end(request)
    assert len(bench.gaps_s) == 4


def test_a_short_answer_is_one_stretch() -> None:
    bench = Bench()
    request = bench.begin()
    bench.stream(request, 4, 0.3)
    bench.end(request)
    assert bench.gaps_s == [pytest.approx(0.3)]


def test_a_lone_token_has_no_gap() -> None:
    bench = Bench()
    request = bench.begin()
    bench.stream(request, 1, 0.3)
    bench.end(request)
    assert bench.gaps_s == []


def test_a_stall_is_seen_while_it_lasts() -> None:
    bench = Bench()
    request = bench.begin()
    bench.stream(request, 50, 0.1)
    bench.wait(15.01)
    # What it can tell at each look is how long it has lasted by then.
    assert bench.gaps_s == [pytest.approx(value, rel=0.05) for value in (0.1, 5.0, 10.0, 15.0)]


def test_few_tokens_at_a_good_pace_wait_for_more() -> None:
    bench = Bench()
    bench.wait(4.0)
    request = bench.begin()
    bench.stream(request, 20, 0.45)
    assert bench.gaps_s == [pytest.approx(0.45)]


@pytest.mark.parametrize(
    ("outcome", "recorded"),
    [
        *(
            (finish.value, [0.0])
            for finish in (FinishReason.STOP, FinishReason.LENGTH, FinishReason.TOOL_CALLS)
        ),
        (FinishReason.CANCELLED.value, []),
        *(
            (kind.value, [1.0])
            for kind in (
                *(ErrorKind.WORKER_DIED, ErrorKind.OVERLOADED, ErrorKind.MODEL_LOAD_FAILED),
                *(ErrorKind.CIRCUIT_OPEN, ErrorKind.INTERNAL),
            )
        ),
        *(
            (kind.value, [])
            for kind in (
                *(ErrorKind.INVALID_PARAMS, ErrorKind.DEADLINE_EXCEEDED, ErrorKind.QUARANTINED),
                *(ErrorKind.SHUTTING_DOWN, ErrorKind.LIMIT_EXCEEDED, ErrorKind.MODEL_NOT_FOUND),
            )
        ),
    ],
)
def test_only_the_servers_own_errors_count(outcome: str, recorded: list[float]) -> None:
    bench = Bench()
    bench.end(bench.begin(), outcome)
    assert bench.errors == recorded


def test_what_is_refused_because_the_tier_is_shed_does_not_count_but_a_death_does() -> None:
    bench = Bench()
    bench.end(bench.begin(), ErrorKind.OVERLOADED.value, shed=True)
    assert bench.errors == []
    bench.end(bench.begin(), ErrorKind.WORKER_DIED.value, shed=True)
    assert bench.errors == [1.0]


def test_one_of_another_tier_is_not_known_and_does_no_harm() -> None:
    bench = Bench()
    stranger = make_request(CollectingSink(), now_s=bench.now_s)
    bench.end(stranger)
    assert not any(bench.recorded.values())


def test_a_rate_is_that_of_all_streams_together_while_there_are_any() -> None:
    bench = Bench()
    one, other = bench.begin(), bench.begin()
    bench.wait(5.0)
    assert bench.rates == []
    bench.start(one)
    bench.start(other)
    for _ in range(20):
        bench.stream(one, 1, 0.25)
        other.deliver("x", [1], bench.now_s)
    # The tokens of the last moment are in the next one.
    assert bench.rates == [pytest.approx(7.6)]
    bench.end(one)
    bench.end(other)
    bench.wait(100.0)
    assert len(bench.rates) == 1


def test_turns_that_are_shorter_than_a_look_are_put_together() -> None:
    bench = Bench()
    for _ in range(5):
        request = bench.begin()
        bench.start(request)
        bench.stream(request, 10, 0.1)
        bench.end(request)
        bench.wait(9.0)
    assert bench.rates == [pytest.approx(10.0)]


def test_those_who_got_nothing_all_the_time_had_no_rate_at_all() -> None:
    bench = Bench()
    bench.start(bench.begin())
    bench.wait(5.0)
    assert bench.rates == [pytest.approx(0.0, abs=1e-5)]


SPANS = st.lists(st.tuples(st.floats(0.0, 30.0), st.floats(0.0, 30.0)), min_size=1, max_size=8)


@given(SPANS)
def test_time_in_which_several_had_their_turn_is_counted_once(spans: list[tuple[float, float]]) -> None:
    bench = Bench()
    now_s = bench.now_s
    turns = [(now_s + began_s, now_s + began_s + took_s) for began_s, took_s in spans]
    requests = [bench.begin() for _ in turns]
    for request, (began_s, _) in zip(requests, turns, strict=True):
        request.marks.dispatched_s = began_s
    # All tokens at once, so that the first rate has all the time in it: there is one look only.
    requests[0].tokens.extend([1] * 1000)
    for request, (_, ended_s) in sorted(zip(requests, turns, strict=True), key=lambda pair: pair[1][1]):
        bench.now_s = ended_s
        bench.end(request)
    bench.now_s = max(ended_s for _, ended_s in turns)
    bench.samples.look(bench.now_s)

    covered_s = (
        sum(
            any(began_s <= now_s + step / 20 < ended_s for began_s, ended_s in turns)
            for step in range(60 * 20)
        )
        / 20
    )
    if not bench.rates:
        assert covered_s <= 0.9 * LOOK_S + 0.5
    else:
        assert 1000 / bench.rates[0] == pytest.approx(covered_s, abs=0.05 * len(turns) + 0.05)


def test_nothing_is_kept_of_requests_that_have_ended() -> None:
    bench = Bench()
    for _ in range(100):
        request = bench.begin()
        bench.start(request)
        request.finish(
            Generated(finish_reason=FinishReason.STOP, prompt_tokens=1, completion_tokens=0), 1, bench.now_s
        )
        bench.end(request)
    bench.wait(5.0)
    assert (bench.samples._tracks, bench.samples._turns) == ({}, [])
