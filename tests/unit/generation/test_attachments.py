"""Who is attached to whose request, and what each gets: by example."""

import math
import sys
from typing import Any

import msgspec
import pytest

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import FinishReason, GenerationResult, ToolCall
from mlxsup.supervisor.generation.extras import Extras
from tests.fakes.saying import call, chances
from tests.unit.generation.attaching import LIMITS, Client, Desk


def result_of(client: Client) -> GenerationResult:
    (outcome,) = client.sink.outcomes
    assert isinstance(outcome, GenerationResult)
    return outcome


def test_a_duplicate_gets_all_text_so_far_at_once_and_then_the_rest_as_it_comes() -> None:
    desk = Desk()
    first = desk.send()
    desk.deliver("one ")
    desk.deliver("two ")
    second = desk.send()
    assert second.sink.pieces == ["one two "]
    desk.deliver("three")
    desk.finish()

    assert len(desk.requests) == 1
    assert first.sink.pieces == ["one ", "two ", "three"]
    assert second.sink.pieces == ["one two ", "three"]
    assert first.sink.text == second.sink.text == "one two three"


def test_a_duplicate_that_comes_before_the_first_text_gets_no_empty_piece() -> None:
    desk = Desk()
    desk.send()
    second = desk.send()
    assert second.sink.pieces == []


def test_a_duplicate_that_streams_not_gets_only_the_result() -> None:
    desk = Desk()
    desk.send()
    desk.deliver("one ")
    second = desk.send(stream=False)
    desk.deliver("two")
    desk.finish()

    assert second.sink.pieces == []
    assert second.sink.text == "one two"


def test_a_stream_can_join_what_began_as_none() -> None:
    desk = Desk()
    first = desk.send(stream=False)
    desk.deliver("one ")
    second = desk.send()
    desk.deliver("two")
    desk.finish()

    assert (first.sink.pieces, first.sink.text) == ([], "one two")
    assert (second.sink.pieces, second.sink.text) == (["one ", "two"], "one two")


def test_the_same_key_with_another_order_is_refused_by_its_path_and_changes_nothing() -> None:
    desk = Desk()
    first = desk.send("p")
    with pytest.raises(RpcError) as refused:
        desk.send("q")
    desk.finish()

    assert refused.value.kind is ErrorKind.INVALID_PARAMS
    assert refused.value.data.path == "$.idempotency_key"
    assert first.sink.text == ""
    # Also while only its result is left.
    with pytest.raises(RpcError, match="another request"):
        desk.send("q")
    desk.pass_time(LIMITS.result_kept_s)
    desk.send("q")
    assert len(desk.requests) == 2


@pytest.mark.parametrize("other", [{"client": "other"}, {"model": "other"}, {"key": "other"}], ids=str)
def test_a_key_is_one_models_and_one_clients(other: dict[str, Any]) -> None:
    desk = Desk()
    desk.send("p")
    desk.send("q", **other)
    assert len(desk.requests) == 2


def test_the_cancel_of_one_of_two_answers_it_with_the_text_so_far_and_the_other_goes_on() -> None:
    desk = Desk()
    first, second = desk.send(), desk.send()
    desk.deliver("one ")
    desk.book.cancel(first.attachment, desk.now_s)
    assert desk.cancelled == []
    assert result_of(first).finish_reason is FinishReason.CANCELLED
    assert (first.sink.text, first.got) == ("one ", "one ")
    assert result_of(first).usage.completion_tokens == 1
    desk.deliver("two")
    desk.finish()

    assert (second.sink.text, second.got) == ("one two", "one two")
    assert first.got == "one "


def test_the_cancel_of_the_last_one_cancels_the_request_and_it_is_answered_with_its_end() -> None:
    desk = Desk()
    first, second = desk.send(), desk.send()
    for client in (first, second, second):
        desk.book.cancel(client.attachment, desk.now_s)
    assert desk.cancelled == desk.requests
    assert second.sink.outcomes == []
    desk.deliver("late")
    desk.end_cancelled()

    assert (result_of(second).finish_reason, second.sink.text) == (FinishReason.CANCELLED, "late")
    assert second.got == "late"


def test_who_comes_after_the_cancel_has_it_computed_anew() -> None:
    desk = Desk()
    first = desk.send()
    desk.deliver("old")
    desk.book.cancel(first.attachment, desk.now_s)
    second = desk.send()
    old, new = desk.requests
    desk.deliver("new", new)
    desk.finish(old)
    desk.finish(new)

    assert first.sink.text == "old"
    assert second.sink.text == "new"
    # The one that was cancelled, and then came to its end all the same, is not what is kept.
    assert desk.send().sink.text == "new"


def test_a_request_whose_client_has_gone_goes_on_and_is_cancelled_when_nobody_comes_back() -> None:
    desk = Desk()
    first = desk.send()
    desk.book.leave(first.attachment, desk.now_s)
    desk.pass_time(LIMITS.reattach_s - 0.1)
    assert desk.cancelled == []
    assert desk.book.next_look_s == pytest.approx(desk.now_s + 0.1)
    desk.pass_time(0.1)
    assert desk.cancelled == desk.requests
    assert desk.book.next_look_s == math.inf
    desk.end_cancelled()
    assert first.sink.outcomes == []


def test_who_comes_back_in_time_gets_the_whole_text_and_ends_the_countdown() -> None:
    desk = Desk()
    first = desk.send()
    desk.deliver("one ")
    desk.book.leave(first.attachment, desk.now_s)
    desk.deliver("two ")
    desk.pass_time(LIMITS.reattach_s - 0.1)
    second = desk.send()
    desk.pass_time(10 * LIMITS.reattach_s)
    desk.deliver("three")
    desk.finish()

    assert desk.cancelled == []
    assert second.sink.pieces == ["one two ", "three"]
    assert second.sink.text == "one two three"
    assert (first.got, first.sink.outcomes) == ("one ", [])


def test_a_client_that_leaves_while_another_waits_changes_nothing_for_that_one() -> None:
    desk = Desk()
    first, second = desk.send(), desk.send()
    desk.book.leave(first.attachment, desk.now_s)
    desk.pass_time(2 * LIMITS.reattach_s)
    assert desk.cancelled == []
    desk.finish()
    assert second.sink.text == ""


def test_each_has_its_own_deadline_and_the_request_outlives_them() -> None:
    desk = Desk()
    early, late = desk.send(deadline_s=2.0), desk.send(deadline_s=5.0)
    desk.deliver("one ")
    assert desk.book.next_look_s == desk.now_s + 2.0
    desk.pass_time(2.0)
    assert early.sink.failure.kind is ErrorKind.DEADLINE_EXCEEDED
    assert early.sink.failure.data.tokens_delivered == 1
    assert late.sink.outcomes == []
    desk.pass_time(3.0)
    assert late.sink.failure.kind is ErrorKind.DEADLINE_EXCEEDED
    assert desk.cancelled == []
    again = desk.send(deadline_s=5.0)
    desk.deliver("two")
    desk.finish()

    assert again.sink.text == "one two"
    assert (early.got, late.got) == ("one ", "one ")


def test_a_request_whose_last_one_was_too_late_is_cancelled_when_nobody_comes_back() -> None:
    desk = Desk()
    desk.send(deadline_s=2.0)
    desk.pass_time(2.0)
    desk.pass_time(LIMITS.reattach_s)
    assert desk.cancelled == desk.requests


def test_the_result_of_a_finished_one_is_given_at_once_until_its_time_is_over() -> None:
    desk = Desk()
    first = desk.send()
    desk.deliver("text")
    desk.book.leave(first.attachment, desk.now_s)
    desk.finish()
    desk.pass_time(LIMITS.result_kept_s - 0.1)
    streaming, plain = desk.send(), desk.send(stream=False)

    assert (streaming.sink.pieces, streaming.sink.text) == (["text"], "text")
    assert (plain.sink.pieces, plain.sink.text) == ([], "text")
    assert desk.book.stats().results_kept == 1
    desk.pass_time(0.1)
    assert desk.book.stats().results_kept == desk.book.stats().results_kept_bytes == 0
    desk.send()
    assert len(desk.requests) == 2


def test_what_is_due_is_done_before_anybody_joins_also_when_nobody_has_looked() -> None:
    desk = Desk()
    first = desk.send()
    desk.book.leave(first.attachment, desk.now_s)
    desk.now_s += LIMITS.reattach_s
    desk.send()
    desk.finish()
    desk.now_s += LIMITS.result_kept_s
    desk.send()

    assert desk.cancelled == desk.requests[:1]
    assert len(desk.requests) == 3


def test_a_result_that_says_cancelled_although_nobody_wanted_that_is_not_kept() -> None:
    desk = Desk()
    desk.send()
    desk.end_cancelled()
    desk.send()
    assert len(desk.requests) == 2


def test_an_answer_takes_its_deadline_with_it() -> None:
    desk = Desk()
    client = desk.send(deadline_s=2.0)
    desk.fail()
    assert desk.book.next_look_s == math.inf
    desk.pass_time(2.0)
    assert len(client.sink.outcomes) == 1


def test_of_too_many_results_the_oldest_goes_first() -> None:
    desk = Desk()
    for key in ("a", "b", "c"):
        desk.send(key=key)
        desk.deliver(key)
        desk.finish()
        desk.pass_time(1.0)

    assert desk.book.stats().results_kept == LIMITS.results_kept_max == 2
    assert [desk.send(key=key).sink.text for key in ("b", "c")] == ["b", "c"]
    assert desk.send(key="a").sink.outcomes == []


def test_results_are_kept_up_to_so_many_bytes_and_one_that_is_too_large_makes_none_of_the_others_go() -> None:
    text = "x" * 10_000
    size = sys.getsizeof(text)
    desk = Desk(msgspec.structs.replace(LIMITS, results_kept_max=100, results_kept_bytes_max=3 * size))
    for key in ("a", "b", "c", "d"):
        desk.send(key=key)
        desk.deliver(text)
        desk.finish()
    kept = desk.book.stats()
    assert kept.results_kept == 2
    assert 2 * size < kept.results_kept_bytes <= 3 * size
    desk.send(key="large")
    desk.deliver("é" * 40_000)
    desk.finish()

    assert desk.book.stats() == kept
    assert desk.send(key="d").sink.text == text


def test_with_no_results_to_keep_a_duplicate_is_computed_anew() -> None:
    desk = Desk(msgspec.structs.replace(LIMITS, results_kept_max=0))
    for _ in range(2):
        desk.send()
        desk.finish()
    assert len(desk.requests) == 2
    assert desk.book.next_look_s == math.inf


def test_an_error_is_told_to_all_and_a_duplicate_that_comes_later_is_computed_anew() -> None:
    desk = Desk()
    first, second = desk.send(), desk.send()
    desk.fail()
    assert first.sink.failure.kind is second.sink.failure.kind is ErrorKind.WORKER_DIED
    desk.send()
    assert len(desk.requests) == 2


def test_one_too_many_is_refused_and_may_come_again_when_another_has_gone() -> None:
    desk = Desk()
    clients = [desk.send() for _ in range(LIMITS.attached_max)]
    with pytest.raises(RpcError) as refused:
        desk.send()
    assert (refused.value.kind, refused.value.data.retriable) == (ErrorKind.LIMIT_EXCEEDED, True)
    desk.book.leave(clients[0].attachment, desk.now_s)
    desk.send()
    assert len(desk.requests) == 1


def test_what_was_refused_leaves_its_key_free_and_its_client_untold() -> None:
    desk = Desk()
    first = desk.send()
    desk.book.withdraw(first.attachment)
    assert desk.book.stats().running == desk.book.stats().attached == 0
    assert first.sink.outcomes == []
    desk.send("another")
    assert len(desk.requests) == 2


def test_times_are_counted_from_each_ones_own_arrival() -> None:
    desk = Desk()
    first = desk.send()
    desk.requests[0].marks.dispatched_s = desk.now_s + 1.0
    desk.pass_time(2.0)
    desk.deliver("one ")
    desk.pass_time(1.0)
    second = desk.send()
    desk.pass_time(1.0)
    desk.deliver("two")
    desk.finish()
    third = desk.send()

    def times(client: Client) -> tuple[float, float | None, float]:
        timings = result_of(client).timings
        return timings.queue_ms, timings.ttft_ms, timings.total_ms

    assert times(first) == (1000.0, 2000.0, 4000.0)
    assert times(second) == (0.0, 0.0, 1000.0)
    assert times(third) == (0.0, 0.0, 0.0)
    rates = {result_of(client).timings.tokens_per_second for client in (first, second, third)}
    assert rates == {0.5}


def test_at_the_close_what_nobody_waits_for_is_cancelled_and_the_rest_when_its_clients_go() -> None:
    desk = Desk()
    gone, waiting = desk.send(key="gone"), desk.send(key="waiting")
    desk.book.leave(gone.attachment, desk.now_s)
    desk.book.close()
    assert desk.cancelled == [gone.request]
    desk.book.leave(waiting.attachment, desk.now_s)
    assert desk.cancelled == [gone.request, waiting.request]


def test_statistics_tell_who_runs_for_whom() -> None:
    desk = Desk()
    desk.send(key="a")
    desk.send(key="a")
    alone = desk.send(key="b")
    desk.book.leave(alone.attachment, desk.now_s)
    stats = desk.book.stats()
    assert (stats.running, stats.abandoned, stats.attached, stats.duplicates_total) == (2, 1, 2, 1)


def test_who_comes_later_gets_all_that_is_beside_the_text_too_and_so_does_who_asks_when_it_is_over() -> None:
    desk = Desk()
    first = desk.send()
    desk.deliver("", extras=Extras(reasoning="why "))
    desk.deliver("", extras=Extras("not", [call("f")]))
    second, silent = desk.send(), desk.send(stream=False)
    desk.deliver("text", extras=chances(7))
    desk.finish()
    third = desk.send()

    assert first.sink.extras == [Extras("why "), Extras("not", [call("f")]), chances(7)]
    assert second.sink.pieces == ["", "text"]
    assert told(second) == told(third) == ("why not", [call("f")], [7], chances(7).logprobs)
    assert third.sink.pieces == ["text"]
    assert (silent.sink.pieces, silent.sink.extras) == ([], [])
    for client in (first, second, silent, third):
        (result,) = client.sink.outcomes
        assert isinstance(result, GenerationResult)
        assert (result.text, result.reasoning, result.tool_calls) == ("text", "why not", [call("f")])


def told(client: Client) -> tuple[str, list[ToolCall], list[int], bytes]:
    extras = client.sink.extras
    return (
        "".join(each.reasoning for each in extras),
        [called for each in extras for called in each.tool_calls],
        [token for each in extras for token in each.tokens],
        b",".join(each.logprobs for each in extras if each.logprobs),
    )


@pytest.mark.parametrize(
    "extras",
    [Extras(reasoning="x" * 10_000), chances(*range(150)), Extras(tool_calls=[call("f")] * 20)],
    ids=["reasoning", "logprobs", "calls"],
)
def test_what_a_result_has_beside_its_text_counts_among_the_bytes_that_are_kept(extras: Extras) -> None:
    desk = Desk()
    desk.send(key="plain")
    desk.finish()
    plain = desk.book.stats().results_kept_bytes
    desk.send(key="more")
    desk.deliver("", extras=extras)
    desk.finish()

    assert desk.book.stats().results_kept_bytes > 2 * plain + 10_000
