from typing import Any

import msgspec
import pytest

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import FinishReason, GenerationResult
from mlxsup.protocol.jsonrpc import encode_result
from mlxsup.protocol.worker_link import Delta, Generate, Generated
from mlxsup.supervisor.generation.extras import Extras, extras_of
from tests.fakes.collecting_sink import CollectingSink
from tests.fakes.requests import make_request
from tests.fakes.saying import call, chances, logprob

DONE = Generated(finish_reason=FinishReason.STOP, prompt_tokens=5, completion_tokens=3)


def test_a_result_has_the_text_and_times_of_what_was_delivered() -> None:
    sink = CollectingSink()
    request = make_request(sink, now_s=100.0)
    request.marks.dispatched_s = 100.5
    request.deliver("Hel", [1], 101.0)
    request.deliver("", [2], 101.25)
    request.deliver("lo", [3], 101.5)
    request.finish(DONE, 2, 102.0)

    (result,) = sink.outcomes
    assert isinstance(result, GenerationResult)
    assert (result.text, sink.pieces) == ("Hello", ["Hel", "lo"])
    assert (result.timings.queue_ms, result.timings.ttft_ms, result.timings.total_ms) == (
        500.0,
        1000.0,
        2000.0,
    )
    assert result.timings.tokens_per_second == 4.0
    assert result.worker is not None
    assert result.worker.generation == 2


def test_nothing_is_delivered_after_the_end_and_a_second_end_is_a_defect() -> None:
    sink = CollectingSink()
    request = make_request(sink, now_s=0.0)
    request.fail(RpcError(ErrorKind.WORKER_DIED, "x"))
    request.deliver("late", [1], 1.0)

    assert sink.pieces == []
    with pytest.raises(AssertionError):
        request.finish(DONE, 1, 1.0)
    with pytest.raises(AssertionError):
        request.finish_cancelled(1.0)
    assert len(sink.outcomes) == 1


def test_a_request_cancelled_before_its_first_token_has_no_ttft() -> None:
    sink = CollectingSink()
    make_request(sink, now_s=0.0).finish_cancelled(2.0)

    (result,) = sink.outcomes
    assert isinstance(result, GenerationResult)
    assert (result.finish_reason, result.timings.ttft_ms) == (FinishReason.CANCELLED, None)
    assert (result.timings.queue_ms, result.timings.tokens_per_second) == (2000.0, 0.0)


def result_of(sink: CollectingSink) -> GenerationResult:
    (result,) = sink.outcomes
    assert isinstance(result, GenerationResult)
    return result


def test_a_result_has_all_that_came_beside_the_text_and_each_piece_was_told_as_it_came() -> None:
    sink = CollectingSink()
    request = make_request(sink, now_s=0.0)
    request.order = msgspec.structs.replace(request.order, logprobs=1)
    pieces = [
        Extras(reasoning="Hm, é"),
        Extras("h.", [call("f")], *_chances(1, 2)),
        Extras("", [call("g"), call("h")]),
        chances(3),
    ]
    request.deliver("", [], 1.0, pieces[0])
    request.deliver("a", [1, 2], 1.0, pieces[1])
    request.deliver("", [], 1.0, pieces[2])
    request.deliver("b", [3], 1.0, pieces[3])
    so_far = request.extras
    request.finish(DONE, 1, 2.0)

    result = result_of(sink)
    assert (result.text, result.reasoning) == ("ab", "Hm, éh.")
    assert result.tool_calls == [call("f"), call("g"), call("h")]
    assert list(result.logprobs or ()) == [logprob(1), logprob(2), logprob(3)]
    assert (sink.pieces, sink.extras) == (["", "a", "", "b"], pieces)
    assert so_far is not None
    assert (so_far.reasoning, list(so_far.tokens)) == ("Hm, éh.", [1, 2, 3])


def _chances(*tokens: int) -> tuple[Any, Any]:
    extras = chances(*tokens)
    return extras.tokens, extras.logprobs


@pytest.mark.parametrize("asked", [None, 0])
def test_a_result_leaves_out_what_there_was_none_of_but_not_the_logprobs_that_were_asked_for(
    asked: int | None,
) -> None:
    sink = CollectingSink()
    request = make_request(sink, now_s=0.0)
    request.order = msgspec.structs.replace(request.order, logprobs=asked)
    request.deliver("a", [1], 1.0)
    request.finish(DONE, 1, 2.0)

    sent = msgspec.json.decode(encode_result(1, result_of(sink)))["result"]
    assert {"text", "finish_reason", "usage", "timings", "worker"} == set(sent) - {"logprobs"}
    assert sent.get("logprobs") == (None if asked is None else [])


def test_a_cancelled_result_has_what_there_was_beside_the_text_and_does_not_grow_afterwards() -> None:
    sink = CollectingSink()
    request = make_request(sink, now_s=0.0)
    request.order = msgspec.structs.replace(request.order, logprobs=1)
    request.deliver("", [1], 1.0, Extras("why", [call("f")], *_chances(1)))
    result = request.cancelled_result(2.0)
    request.deliver("", [2], 2.0, Extras(" not", [call("g")], *_chances(2)))

    assert (result.reasoning, result.tool_calls) == ("why", [call("f")])
    assert list(result.logprobs or ()) == [logprob(1)]
    request.finish_cancelled(3.0)
    assert result_of(sink).reasoning == "why not"


def test_the_next_worker_is_told_of_all_that_was_delivered() -> None:
    request = make_request(CollectingSink(), now_s=0.0)
    assert request.remaining_order() is request.order
    request.deliver("née", [1, 2], 1.0, Extras("thé", [call("f")]))
    request.deliver("", [3], 1.0, Extras("!", [call("g")]))

    order = request.remaining_order()
    assert isinstance(order, Generate)
    assert (order.delivered_tokens, order.delivered_chars) == ([1, 2, 3], 3)
    assert (order.delivered_reasoning_chars, order.delivered_tool_calls) == (4, 2)


def test_what_a_worker_tells_of_text_alone_has_nothing_beside_it() -> None:
    assert extras_of(Delta(1, "a", [1])) is None
    assert extras_of(Delta(1, "", [1], "why")) == Extras("why", [])
    assert extras_of(Delta(1, "", [1], "", [call("f")])) == Extras("", [call("f")])
    # Tokens are told of with their logprobs only.
    assert extras_of(Delta(1, "", [5, 6], "", [], [logprob(5), logprob(6)])) == Extras(
        "", [], [5, 6], chances(5, 6).logprobs
    )
