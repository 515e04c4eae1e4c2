import pytest

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import FinishReason, GenerationResult
from mlxsup.protocol.worker_link import Generated
from tests.fakes.collecting_sink import CollectingSink
from tests.fakes.requests import make_request

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
