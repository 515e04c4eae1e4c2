"""Whoever kills workers is found, whoever was only there is not."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mlxsup.config.schema import Generation
from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import ChatParams, JsonObjectFormat, Message, RegexFormat
from mlxsup.supervisor.generation.extras import Extras
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.generation.translate import make_order
from mlxsup.supervisor.recovery.poison import PoisonWatch, QuarantinedRequest, request_digest
from tests.fakes.collecting_sink import CollectingSink
from tests.fakes.requests import GREEDY, make_request, prompt_of
from tests.fakes.saying import call

CLEAR = 8
MEMORY_S = 3600.0


def requests() -> Iterator[GenerationRequest]:
    number = 0
    while True:
        number += 1
        yield make_request(CollectingSink(), prompt=f"prompt {number}", tokens=1000, now_s=0.0)


def watch(quarantine_max: int = 100) -> PoisonWatch:
    return PoisonWatch(CLEAR, quarantine_max, MEMORY_S)


def quarantined(poison: PoisonWatch) -> list[str]:
    """Digests, oldest first."""
    return list(poison._quarantined)


def entry(digest: str) -> QuarantinedRequest:
    return QuarantinedRequest(digest=digest, model="m", deaths=2, death_class="aborted")


def test_a_first_death_makes_suspects_of_all_and_quarantines_nobody() -> None:
    poison = watch()
    a, b, elsewhere = (r for r, _ in zip(requests(), range(3), strict=False))

    assert poison.note_death([a, b], "aborted", 0.0) == []
    assert poison.is_loner(a)
    assert poison.is_loner(b)
    assert not poison.is_loner(elsewhere)
    assert quarantined(poison) == []


@pytest.mark.parametrize("tokens", [0, CLEAR])
def test_what_failed_alone_is_forgotten_once_the_same_gets_on_or_completes(tokens: int) -> None:
    poison = watch()
    failed, again, later = (next(requests()) for _ in range(3))
    poison.note_failed_alone(failed, "killed", 0.0)
    poison.note_start(again, 1.0)
    assert poison.is_loner(again)
    assert poison.has_failed_alone(again, "killed")

    again.deliver("x", [1] * tokens, 1.0)
    if not tokens:
        poison.note_completed(again)
    assert not poison.is_loner(again)
    assert not poison.has_failed_alone(later, "killed")


def test_a_suspect_that_is_alone_at_a_second_death_is_refused_from_then_on() -> None:
    poison = watch()
    a, b = (r for r, _ in zip(requests(), range(2), strict=False))
    poison.note_death([a, b], "aborted", 0.0)

    assert poison.note_death([a], "segmentation_fault", 0.0) == [a]
    found = poison.find("m", a.order)
    assert found is not None
    assert (found.deaths, found.death_class, found.model) == (2, "segmentation_fault", "m")
    assert poison.find("m", b.order) is None
    assert poison.find("other model", a.order) is None
    assert poison.is_loner(b)
    assert not poison.is_loner(a)


def test_released_requests_of_one_model_may_try_again_and_others_may_not() -> None:
    poison = watch()
    request = next(requests())
    poison.note_death([request], "aborted", 0.0)
    poison.note_death([request], "aborted", 0.0)
    poison.quarantine(replace(entry("of another"), model="other"))

    assert poison.count_quarantined("m") == 1
    assert poison.release("m") == {request_digest("m", request.order)}
    assert (poison.count_quarantined("m"), poison.count_quarantined("other")) == (0, 1)
    assert poison.find("m", request.order) is None
    assert quarantined(poison) == ["of another"]


def test_alone_once_is_not_enough() -> None:
    poison = watch()
    (a,) = (r for r, _ in zip(requests(), range(1), strict=False))

    assert poison.note_death([a], "aborted", 0.0) == []
    assert poison.note_death([a], "aborted", 0.0) == [a]


def test_two_at_a_second_death_are_both_only_suspects() -> None:
    poison = watch()
    a, b = (r for r, _ in zip(requests(), range(2), strict=False))
    poison.note_death([a, b], "aborted", 0.0)

    assert poison.note_death([a, b], "aborted", 0.0) == []
    assert quarantined(poison) == []


def test_a_suspect_that_gets_on_from_where_it_was_is_cleared() -> None:
    poison = watch()
    (a,) = (r for r, _ in zip(requests(), range(1), strict=False))
    a.deliver("", [1] * 20, 0.0)
    poison.note_death([a], "aborted", 0.0)
    a.deliver("", [1] * (CLEAR - 1), 0.0)
    assert poison.is_loner(a)
    a.deliver("", [1], 0.0)
    assert not poison.is_loner(a)
    assert not poison.has_loners
    assert poison.note_death([a], "aborted", 0.0) == []


def test_a_lone_request_that_got_on_between_two_deaths_is_not_quarantined_although_nobody_asked_meanwhile() -> (
    None
):
    poison = watch()
    a = next(requests())
    poison.note_death([a], "aborted", 0.0)
    a.deliver("", [1] * CLEAR, 0.0)

    assert poison.note_death([a], "aborted", 0.0) == []
    assert poison.note_death([a], "aborted", 0.0) == [a]


def test_a_suspect_that_has_ended_is_one_until_no_worker_has_it() -> None:
    poison = watch()
    a = next(requests())
    poison.note_death([a], "aborted", 0.0)
    a.fail(RpcError(ErrorKind.DEADLINE_EXCEEDED, "x"))
    assert poison.is_loner(a)
    poison.forget(a)

    assert not poison.is_loner(a)
    assert not poison.has_loners


def again(request: GenerationRequest) -> GenerationRequest:
    """The same, sent again."""
    return make_request(CollectingSink(), prompt=prompt_of(request) or "", tokens=1000, now_s=0.0)


def started(poison: PoisonWatch, request: GenerationRequest, now_s: float = 0.0) -> GenerationRequest:
    poison.note_start(request, now_s)
    return request


def ended(poison: PoisonWatch, request: GenerationRequest) -> GenerationRequest:
    request.fail(RpcError(ErrorKind.WORKER_DIED, "x"))
    poison.forget(request)
    return request


def test_what_is_sent_again_after_a_death_is_a_suspect_and_refused_when_it_is_alone_at_the_next() -> None:
    poison = watch()
    a, b = (r for r, _ in zip(requests(), range(2), strict=False))
    poison.note_death([a, b], "aborted", 0.0)
    ended(poison, a)
    ended(poison, b)
    second = started(poison, again(a))
    assert poison.is_loner(second)

    assert poison.note_death([second], "aborted", 1.0) == [second]
    assert poison.find("m", again(a).order) is not None
    assert poison.find("m", b.order) is None


def test_a_request_that_had_ended_before_its_worker_died_is_found_as_one_that_had_not() -> None:
    poison = watch()
    first = ended(poison, next(requests()))
    assert poison.note_death([first], "hung", 0.0) == []
    second = ended(poison, started(poison, again(first)))

    assert poison.note_death([second], "hung", 1.0) == [second]
    assert not poison.has_loners


def test_in_company_no_number_of_deaths_makes_anybody_guilty() -> None:
    poison = watch()
    probe, other = (r for r, _ in zip(requests(), range(2), strict=False))
    for _ in range(20):
        copies = [started(poison, again(probe)) for _ in range(2)]
        assert poison.note_death([*copies, again(other)], "aborted", 0.0) == []
        for copy in copies:
            ended(poison, copy)

    assert quarantined(poison) == []


@pytest.mark.parametrize("completes", [True, False])
def test_once_one_is_cleared_the_same_is_no_suspect_when_it_is_sent_again(completes: bool) -> None:
    poison = watch()
    a = next(requests())
    poison.note_death([a], "aborted", 0.0)
    ended(poison, a)
    second = started(poison, again(a))
    if completes:
        poison.note_completed(second)
    else:
        second.deliver("", [1] * CLEAR, 0.0)
    assert not poison.is_loner(second)
    third = started(poison, again(a))

    assert not poison.is_loner(third)
    assert poison.note_death([third], "aborted", 1.0) == []


def test_what_killed_late_is_a_suspect_until_it_is_past_that_place() -> None:
    poison = watch()
    a = next(requests())
    a.deliver("", [1] * 100, 0.0)
    poison.note_death([a], "aborted", 0.0)
    ended(poison, a)
    second = started(poison, again(a))
    second.deliver("", [1] * (99 + CLEAR), 0.0)
    assert poison.is_loner(second)
    second.deliver("", [1], 0.0)

    assert not poison.is_loner(second)


def test_a_death_that_is_long_past_is_held_against_nobody() -> None:
    poison = watch()
    a = next(requests())
    poison.note_death([a], "aborted", 0.0)
    ended(poison, a)

    assert poison.is_loner(started(poison, again(a), MEMORY_S))
    assert not poison.is_loner(late := started(poison, again(a), MEMORY_S + 1.0))
    assert poison.note_death([late], "aborted", MEMORY_S + 1.0) == []


def test_only_so_many_are_remembered_the_newest() -> None:
    poison = watch(quarantine_max=2)
    oldest, *newer = (r for r, _ in zip(requests(), range(3), strict=False))
    for number, request in enumerate([oldest, *newer]):
        poison.note_death([request], "aborted", float(number))
        ended(poison, request)

    assert [poison.is_loner(started(poison, again(r), 3.0)) for r in (oldest, *newer)] == [
        False,
        True,
        True,
    ]


def test_released_by_hand_nothing_that_is_sent_is_a_suspect() -> None:
    poison = watch()
    a = next(requests())
    poison.note_death([a], "aborted", 0.0)
    ended(poison, a)
    poison.release("m")

    assert not poison.is_loner(started(poison, again(a)))


@given(st.lists(st.integers(0, 20)), st.integers(1, 5))
def test_the_oldest_entries_go_when_there_are_too_many(numbers: list[int], quarantine_max: int) -> None:
    poison = PoisonWatch(CLEAR, quarantine_max, MEMORY_S, [entry(str(number)) for number in numbers])

    assert len(quarantined(poison)) == min(quarantine_max, len(set(numbers)))
    if numbers:
        assert str(numbers[-1]) in quarantined(poison)


def test_what_was_known_before_is_refused_again() -> None:
    (a,) = (r for r, _ in zip(requests(), range(1), strict=False))
    known = entry(request_digest("m", a.order))

    assert PoisonWatch(CLEAR, 10, MEMORY_S, [known]).find("m", a.order) == known


def test_the_digest_is_of_what_was_asked_and_not_of_how_far_it_came() -> None:
    (a,) = (r for r, _ in zip(requests(), range(1), strict=False))
    before = request_digest("m", a.order)
    a.deliver("text", [1, 2, 3], 0.0, Extras("why", [call("f")]))

    assert request_digest("m", a.remaining_order()) == before
    assert a.remaining_order() != a.order


def test_the_digest_of_a_conversation_is_the_same_whenever_it_is_sent() -> None:
    chat = make_order(
        ChatParams(model="m", messages=[Message(role="user", content="hi")]), Generation(), 1, now_unix_s=1.0
    )
    later = replace(chat, accepted_unix_s=10.0**9)

    assert chat.accepted_unix_s == 1.0
    assert request_digest("m", later) == request_digest("m", chat)


def test_the_digest_is_the_same_however_urgent_the_request_is() -> None:
    (a,) = (r for r, _ in zip(requests(), range(1), strict=False))

    assert request_digest("m", replace(a.order, urgency=0)) == request_digest("m", a.order)


def test_the_digest_differs_with_all_that_decides_what_is_computed() -> None:
    (a,) = (r for r, _ in zip(requests(), range(1), strict=False))
    order = a.order
    others = [
        replace(order, prompt="another"),
        replace(order, prompt=None, prompt_tokens=[1]),
        replace(order, max_tokens=7),
        replace(order, stop=("x",)),
        replace(order, sampling=replace(GREEDY, temperature=0.5)),
        replace(order, seeded=True),
        replace(order, seeded=True, sampling=replace(GREEDY, seed=99)),
        replace(order, format=JsonObjectFormat()),
        replace(order, format=RegexFormat("a")),
        replace(order, format=RegexFormat("b")),
        replace(order, tools=[{"type": "function", "function": {"name": "f"}}]),
        replace(order, tool_choice="required"),
        replace(order, logprobs=0),
        replace(order, logprobs=1),
        replace(order, adapter="a"),
    ]
    digests = {request_digest("m", other) for other in (order, *others)} | {request_digest("n", order)}

    assert len(digests) == len(others) + 2
    assert all(len(digest) == 64 for digest in digests)


def test_a_seed_that_nobody_asked_for_hides_nothing() -> None:
    (a,) = (r for r, _ in zip(requests(), range(1), strict=False))
    drawn = replace(a.order, sampling=replace(GREEDY, seed=123))

    assert request_digest("m", drawn) == request_digest("m", a.order)
