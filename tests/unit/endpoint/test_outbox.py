import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxsup.protocol.generation import StreamDelta
from mlxsup.protocol.jsonrpc import Id, encode_result
from mlxsup.supervisor.endpoint.outbox import ClientOutbox
from mlxsup.supervisor.generation.extras import Extras
from tests.fakes.saying import call, chances, logprob

IDS: list[Id] = [1, "1", None]


class Put(msgspec.Struct, frozen=True):
    frame: bytes


class Delta(msgspec.Struct, frozen=True):
    """`tokens` are those that there are logprobs of."""

    id: Id
    text: str
    reasoning: str = ""
    calls: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()

    @property
    def extras(self) -> Extras | None:
        if not (self.reasoning or self.calls or self.tokens):
            return None
        return Extras(
            self.reasoning, [call(name) for name in self.calls], self.tokens, chances(*self.tokens).logprobs
        )

    def joined(self, new: "Delta") -> "Delta":
        return Delta(
            self.id,
            self.text + new.text,
            self.reasoning + new.reasoning,
            self.calls + new.calls,
            self.tokens + new.tokens,
        )


class Respond(msgspec.Struct, frozen=True):
    id: Id
    result: int


class Take(msgspec.Struct, frozen=True):
    bytes_max: int


ids = st.sampled_from(IDS)
texts = st.text(st.sampled_from('ab"\n\r\\é😀\x00'), max_size=5)
puts = st.one_of(
    st.builds(Put, st.sampled_from([b"{}", b'{"event":1}'])),
    st.builds(Delta, ids, texts),
    st.builds(
        Delta,
        ids,
        texts,
        texts,
        st.lists(st.sampled_from(["f", "g"]), max_size=2).map(tuple),
        st.lists(st.integers(0, 9), max_size=3).map(tuple),
    ),
    st.builds(Respond, ids, st.integers(0, 9)),
)
takes = st.builds(Take, st.sampled_from([0, 1, 100, 300, 10_000]))


def model_of(waiting: list[Put | Delta | Respond], new: Put | Delta | Respond) -> None:
    """What waits, as a plain list: a delta joins the last one of its id, unless that id was answered since."""
    if isinstance(new, Delta):
        for place in reversed(range(len(waiting))):
            old = waiting[place]
            if isinstance(old, Respond) and old.id == new.id and type(old.id) is type(new.id):
                break
            if isinstance(old, Delta) and old.id == new.id and type(old.id) is type(new.id):
                waiting[place] = old.joined(new)
                return
    waiting.append(new)


def put(outbox: ClientOutbox, new: Put | Delta | Respond) -> None:
    match new:
        case Put(frame=frame):
            outbox.put(frame)
        case Delta(id=id, text=text):
            outbox.put_delta(id, text, new.extras)
        case Respond(id=id, result=result):
            outbox.put_response(id, encode_result(id, result))


def read(frame: bytes) -> Put | Delta | Respond:
    message: dict[str, Any] = msgspec.json.decode(frame)
    if message.get("method") == "stream/delta":
        params = message["params"]
        assert params["index"] == 0
        # What is empty is not sent.
        assert all(value for name, value in params.items() if name not in ("id", "index", "text"))
        told = msgspec.convert(params, StreamDelta)
        assert list(told.tool_calls) == [call(called.function.name) for called in told.tool_calls]
        assert list(told.logprobs) == [logprob(token) for token in told.tokens]
        names = tuple(called.function.name for called in told.tool_calls)
        return Delta(told.id, told.text, told.reasoning, names, tuple(told.tokens))
    return Respond(message["id"], message["result"]) if "result" in message else Put(frame)


@given(st.lists(puts | takes, max_size=40))
def test_what_leaves_is_what_a_plain_list_would_give_in_its_order(
    steps: list[Put | Delta | Respond | Take],
) -> None:
    outbox = ClientOutbox()
    waiting: list[Put | Delta | Respond] = []
    for step in [*steps, Take(1 << 30)]:
        if isinstance(step, Take):
            frames = outbox.take(step.bytes_max)
            assert [read(frame) for frame in frames] == waiting[: len(frames)]
            assert len(frames) >= min(1, len(waiting))
            assert sum(map(len, frames[:-1])) < max(step.bytes_max, 1)
            del waiting[: len(frames)]
        else:
            put(outbox, step)
            model_of(waiting, step)
        assert bool(outbox) == bool(waiting)
        assert (outbox.bytes_held > 0) == bool(waiting)
    assert outbox.bytes_held == 0
    assert not waiting


@given(st.lists(puts, max_size=40))
def test_the_count_of_bytes_is_never_far_below_what_is_sent(steps: list[Put | Delta | Respond]) -> None:
    outbox = ClientOutbox()
    for step in steps:
        put(outbox, step)
    held = outbox.bytes_held
    # Control characters grow to six bytes each in JSON, which is the worst that can happen.
    assert sum(map(len, outbox.take(1 << 30))) <= 6 * held


@given(st.lists(texts, min_size=1), st.lists(st.booleans(), max_size=30))
def test_the_deltas_of_a_request_join_to_its_text_and_come_before_its_response(
    pieces: list[str], takings: list[bool]
) -> None:
    outbox = ClientOutbox()
    frames: list[bytes] = []
    for place, piece in enumerate(pieces):
        outbox.put_delta(1, piece, None)
        if place < len(takings) and takings[place]:
            frames += outbox.take(1)
    outbox.put_response(1, encode_result(1, 0))
    frames += outbox.take(1 << 30)
    *deltas, last = map(read, frames)
    assert last == Respond(1, 0)
    assert "".join(delta.text for delta in deltas if isinstance(delta, Delta)) == "".join(pieces)
    assert len(deltas) <= 1 + sum(takings[: len(pieces)])


def test_ids_of_another_type_are_other_requests() -> None:
    outbox = ClientOutbox()
    for id in (1, "1", None, 1, "1", None):
        outbox.put_delta(id, str(type(id)), None)
    assert [read(frame) for frame in outbox.take(1 << 30)] == [
        Delta(id, 2 * str(type(id))) for id in (1, "1", None)
    ]


def test_a_delta_of_a_new_request_with_the_id_of_an_answered_one_does_not_join_the_old_ones() -> None:
    outbox = ClientOutbox()
    outbox.put_delta(1, "old", None)
    outbox.put_response(1, encode_result(1, 0))
    outbox.put_delta(1, "new", None)
    assert [read(frame) for frame in outbox.take(1 << 30)] == [
        Delta(1, "old"),
        Respond(1, 0),
        Delta(1, "new"),
    ]


def test_an_id_may_be_used_again_before_the_answer_of_the_old_one_is_put() -> None:
    outbox = ClientOutbox()
    outbox.put_delta(1, "old", None)
    outbox.end(1)
    outbox.end(2)
    outbox.put_delta(1, "new", None)
    outbox.put_delta(1, "er", None)
    assert [read(frame) for frame in outbox.take(1 << 30)] == [Delta(1, "old"), Delta(1, "newer")]
    assert outbox.bytes_held == 0


def test_an_empty_outbox_gives_nothing() -> None:
    outbox = ClientOutbox()
    assert not outbox
    assert outbox.take(100) == []


@pytest.mark.parametrize("requests", [1, 10])
@pytest.mark.parametrize(
    "extras",
    [None, Extras(reasoning="why "), Extras(tool_calls=[call("f")]), chances(7)],
    ids=["text", "reasoning", "calls", "logprobs"],
)
def test_a_reader_that_never_reads_costs_about_the_bytes_that_are_counted(
    requests: int, extras: Extras | None
) -> None:
    outbox = ClientOutbox()
    tracemalloc.start()
    try:
        for number in range(50_000):
            outbox.put_delta(number % requests, f"{number % 1000:03} ", extras)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert outbox.bytes_held >= 200_000
    assert held < 2 * outbox.bytes_held
