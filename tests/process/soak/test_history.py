"""What a soak's clients saw, event by event."""

from typing import Any

import pytest

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import FinishReason, GenerationResult, ServedBy, Timings, Usage
from mlxsup.protocol.service import Event
from scripts.soak.causes import Cause
from scripts.soak.history import History, Strike, Target
from scripts.soak.orders import Order
from scripts.soak.schedule import Aim, Blow

ORDER = Order({"prompt": "p", "max_tokens": 3}, "one two three", 3)
KILL = Blow(cause=Cause.KILL, inside=False, moment=0.0, metal="gpu_hang")


class Told(History):
    """With shorter ways to tell it."""

    def __init__(self) -> None:
        super().__init__("m")

    def state_is(self, what: str, at_s: float, model: str = "m") -> None:
        self.event(Event(topic="worker", model=model, what=what, detail={}), at_s)

    def dies(self, pid: int, at_s: float, what: str = "killed", model: str = "m") -> None:
        detail: dict[str, Any] = {"pid": pid, "phase": "ready"}
        self.event(Event(topic="death", model=model, what=what, detail=detail), at_s)

    def strike(
        self, pid: int, at_s: float, target: Target = Target.SERVING, spares: frozenset[int] = frozenset()
    ) -> Strike:
        return self.struck(KILL, Aim.DECODE, target, pid, spares=spares, now_s=at_s, wall_s=0.0)

    def asks(self, model: str = "m", order: Order = ORDER) -> int:
        return self.sent(model, order)


def answer(text: str = ORDER.text, tokens: int = ORDER.tokens, resumed: int = 0) -> GenerationResult:
    return GenerationResult(
        text=text,
        finish_reason=FinishReason.LENGTH,
        usage=Usage(prompt_tokens=1, completion_tokens=tokens),
        timings=Timings(queue_ms=0, ttft_ms=None, total_ms=0, tokens_per_second=0),
        worker=ServedBy(generation=1, resumed=resumed),
    )


def ready_with_text(streams: int = 1) -> tuple[Told, list[int]]:
    history = Told()
    history.state_is("ready", 0.0)
    numbers = [history.asks() for _ in range(streams)]
    for number in numbers:
        history.piece(number, "one ", 1.0)
    return history, numbers


def how_it_goes(history: Told) -> tuple[bool, str]:
    return history.flows, history.computing


def recover(history: Told, from_s: float) -> None:
    for step, state in enumerate(("backoff", "spawning", "loading", "warming", "ready")):
        history.state_is(state, from_s + step)


def test_an_outage_is_from_the_strike_to_the_first_text_of_a_stream_that_was_in_flight() -> None:
    history, (number,) = ready_with_text()
    history.strike(10, 2.0, spares=frozenset({11}))
    history.dies(10, 2.5)
    late = history.asks()
    recover(history, 3.0)
    history.serves(11)
    history.piece(late, "one ", 8.0)
    assert history.outages == []
    history.piece(number, "two ", 9.0)

    (outage,) = history.outages
    assert outage.seconds == 7.0
    assert outage.with_spare
    assert outage.between("death", "loading") == 2.5
    assert outage.between("loading", "ready") == 2.0


def test_text_that_was_on_its_way_when_the_worker_was_struck_ends_no_outage() -> None:
    history, (number,) = ready_with_text()
    history.strike(10, 2.0)
    history.piece(number, "two ", 2.1)
    history.dies(10, 2.5)

    assert history.outages == []


def test_a_worker_that_was_not_there_before_the_strike_was_no_spare() -> None:
    history, (number,) = ready_with_text()
    history.strike(10, 2.0, spares=frozenset({11}))
    history.dies(10, 2.5)
    recover(history, 3.0)
    history.serves(10)
    history.serves(12)
    history.piece(number, "two ", 9.0)

    assert not history.outages[0].with_spare


def test_a_second_blow_before_the_streams_go_on_begins_another_outage() -> None:
    history, (number,) = ready_with_text()
    history.strike(10, 2.0)
    history.dies(10, 2.5)
    history.state_is("loading", 3.0)
    history.strike(12, 4.0)
    history.dies(12, 4.5)
    recover(history, 5.0)
    history.piece(number, "two ", 10.0)

    assert history.cut_short == 1
    assert [outage.seconds for outage in history.outages] == [6.0]
    assert history.outages[0].began_s == 2.0


def test_the_end_of_a_spare_and_of_a_worker_without_streams_are_no_outages() -> None:
    history, (number,) = ready_with_text()
    history.strike(11, 2.0, target=Target.SPARE)
    history.answered(number, answer())
    history.strike(10, 3.0)
    history.dies(10, 3.5)
    recover(history, 4.0)

    assert history.outages == []
    assert [strike.death_s for strike in history.strikes] == [None, 3.5]


@pytest.mark.parametrize(
    ("pieces", "result", "faults"),
    [
        (["one ", "two three"], answer(), []),
        (["one ", "one ", "two three"], answer(), ["the stream differs from character 4 on"]),
        (["one ", "three"], answer(), ["the stream differs from character 5 on"]),
        (["one two three"], answer("one two"), ["the answer differs from character 7 on"]),
        (["one two three"], answer(tokens=4), ["4 tokens instead of 3"]),
    ],
    ids=["right", "twice", "missing", "answer", "tokens"],
)
def test_every_text_is_compared_as_it_was_streamed_and_as_it_was_answered(
    pieces: list[str], result: GenerationResult, faults: list[str]
) -> None:
    history = Told()
    number = history.asks()
    for piece in pieces:
        history.piece(number, piece, 1.0)
    history.answered(number, result)

    assert history.asked[number].faults == faults
    assert history.unsettled == 0


def test_a_request_is_unsettled_until_it_has_an_answer_or_an_error_or_is_lost() -> None:
    history = Told()
    first, second, third = (history.asks() for _ in range(3))
    assert history.unsettled == 3
    history.answered(first, answer())
    history.refused(second, RpcError(ErrorKind.WORKER_DIED, "it died"))
    history.lost(third, "not answered within 60 s")

    assert history.unsettled == 0
    assert [history.asked[number].error for number in (second, third)] == [
        "worker_died: it died",
        "not answered within 60 s",
    ]


def test_streams_flow_again_when_each_that_was_in_flight_has_new_text_or_its_end() -> None:
    history, (first, second, third) = ready_with_text(3)
    assert how_it_goes(history) == (True, "decode")
    history.strike(10, 2.0)
    history.dies(10, 2.5)
    recover(history, 3.0)
    assert how_it_goes(history) == (False, "prefill")
    history.piece(first, "two ", 8.0)
    history.answered(second, answer())
    assert how_it_goes(history) == (False, "prefill")
    history.piece(third, "two ", 9.0)

    assert how_it_goes(history) == (True, "decode")


def test_what_is_computed_is_idle_without_requests_and_the_state_while_there_is_no_worker() -> None:
    history, (number,) = ready_with_text()
    history.answered(number, answer())
    assert history.computing == "idle"
    history.state_is("loading", 2.0)
    assert history.computing == "loading"


def test_another_models_requests_and_states_are_not_those_of_the_struck_one() -> None:
    history, (number,) = ready_with_text()
    history.asks(model="other")
    history.state_is("loading", 2.0, model="other")

    assert history.in_flight() == [number]
    assert history.computing == "decode"


def test_a_death_that_nobody_caused_is_noted_and_so_is_the_second_of_one_blow() -> None:
    history, _ = ready_with_text()
    history.dies(99, 1.0, model="other")
    history.strike(10, 2.0)
    history.dies(10, 2.5)
    history.dies(10, 2.6)

    assert history.stray_deaths == ["other: killed, pid 99", "m: killed, pid 10"]
