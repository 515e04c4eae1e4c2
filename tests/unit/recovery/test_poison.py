"""Whoever kills workers is found, whoever was only there is not."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.recovery.poison import PoisonWatch, QuarantinedRequest, request_digest
from tests.fakes.collecting_sink import CollectingSink
from tests.fakes.requests import GREEDY, make_request

CLEAR = 8


def requests() -> Iterator[GenerationRequest]:
    number = 0
    while True:
        number += 1
        yield make_request(CollectingSink(), prompt=f"prompt {number}", tokens=1000, now_s=0.0)


def watch(quarantine_max: int = 100) -> PoisonWatch:
    return PoisonWatch(CLEAR, quarantine_max)


def entry(digest: str) -> QuarantinedRequest:
    return QuarantinedRequest(digest=digest, model="m", deaths=2, death_class="aborted")


def test_a_first_death_makes_suspects_of_all_and_quarantines_nobody() -> None:
    poison = watch()
    a, b, elsewhere = (r for r, _ in zip(requests(), range(3), strict=False))

    assert poison.note_death([a, b], "aborted") == []
    assert poison.is_suspect(a)
    assert poison.is_suspect(b)
    assert not poison.is_suspect(elsewhere)
    assert poison.listed() == []


def test_a_suspect_that_is_alone_at_a_second_death_is_refused_from_then_on() -> None:
    poison = watch()
    a, b = (r for r, _ in zip(requests(), range(2), strict=False))
    poison.note_death([a, b], "aborted")

    assert poison.note_death([a], "segmentation_fault") == [a]
    found = poison.find("m", a.order)
    assert found is not None
    assert (found.deaths, found.death_class, found.model) == (2, "segmentation_fault", "m")
    assert poison.find("m", b.order) is None
    assert poison.find("other model", a.order) is None
    assert poison.is_suspect(b)
    assert not poison.is_suspect(a)


def test_released_requests_of_one_model_may_try_again_and_others_may_not() -> None:
    poison = watch()
    request = next(requests())
    poison.note_death([request], "aborted")
    poison.note_death([request], "aborted")
    poison.quarantine(replace(entry("of another"), model="other"))

    assert poison.release("m") == {request_digest("m", request.order)}
    assert poison.find("m", request.order) is None
    assert [kept.digest for kept in poison.listed()] == ["of another"]


def test_alone_once_is_not_enough() -> None:
    poison = watch()
    (a,) = (r for r, _ in zip(requests(), range(1), strict=False))

    assert poison.note_death([a], "aborted") == []
    assert poison.note_death([a], "aborted") == [a]


def test_two_at_a_second_death_are_both_only_suspects() -> None:
    poison = watch()
    a, b = (r for r, _ in zip(requests(), range(2), strict=False))
    poison.note_death([a, b], "aborted")

    assert poison.note_death([a, b], "aborted") == []
    assert poison.listed() == []


def test_a_suspect_that_gets_on_from_where_it_was_is_cleared() -> None:
    poison = watch()
    (a,) = (r for r, _ in zip(requests(), range(1), strict=False))
    a.deliver("", [1] * 20, 0.0)
    poison.note_death([a], "aborted")
    a.deliver("", [1] * (CLEAR - 1), 0.0)
    assert poison.is_suspect(a)
    a.deliver("", [1], 0.0)
    assert not poison.is_suspect(a)
    assert not poison.has_suspects
    assert poison.note_death([a], "aborted") == []


@pytest.mark.parametrize("told", [True, False])
def test_a_suspect_that_ends_is_no_longer_one(told: bool) -> None:
    poison = watch()
    (a,) = (r for r, _ in zip(requests(), range(1), strict=False))
    poison.note_death([a], "aborted")
    a.fail(RpcError(ErrorKind.DEADLINE_EXCEEDED, "x"))
    if told:
        poison.forget(a)
    else:
        assert not poison.is_suspect(a)

    assert not poison.has_suspects


@given(st.lists(st.integers(0, 20)), st.integers(1, 5))
def test_the_oldest_entries_go_when_there_are_too_many(numbers: list[int], quarantine_max: int) -> None:
    poison = PoisonWatch(CLEAR, quarantine_max, [entry(str(number)) for number in numbers])

    assert len(poison.listed()) == min(quarantine_max, len(set(numbers)))
    if numbers:
        assert str(numbers[-1]) in {kept.digest for kept in poison.listed()}


def test_what_was_known_before_is_refused_again() -> None:
    (a,) = (r for r, _ in zip(requests(), range(1), strict=False))
    known = entry(request_digest("m", a.order))

    assert PoisonWatch(CLEAR, 10, [known]).find("m", a.order) == known


def test_the_digest_is_of_what_was_asked_and_not_of_how_far_it_came() -> None:
    (a,) = (r for r, _ in zip(requests(), range(1), strict=False))
    before = request_digest("m", a.order)
    a.deliver("text", [1, 2, 3], 0.0)

    assert request_digest("m", a.remaining_order()) == before
    assert a.remaining_order() != a.order


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
    ]
    digests = {request_digest("m", other) for other in (order, *others)} | {request_digest("n", order)}

    assert len(digests) == len(others) + 2
    assert all(len(digest) == 64 for digest in digests)


def test_a_seed_that_nobody_asked_for_hides_nothing() -> None:
    (a,) = (r for r, _ in zip(requests(), range(1), strict=False))
    drawn = replace(a.order, sampling=replace(GREEDY, seed=123))

    assert request_digest("m", drawn) == request_digest("m", a.order)
