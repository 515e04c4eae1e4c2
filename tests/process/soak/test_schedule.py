"""Where blows fall: everywhere, the same for the same seed, and never where they would condemn the innocent."""

import itertools
from collections.abc import Iterator

import pytest

from scripts.soak.causes import METAL_WORDS, NATURES, SIGNALLED, Cause, metal_words
from scripts.soak.orders import drawn, model_params, scripted_orders
from scripts.soak.schedule import Aim, Blow, Episode, episodes


def some(seed: int, causes: tuple[Cause, ...] = tuple(Cause), count: int = 500) -> list[Episode]:
    return list(itertools.islice(episodes(seed, causes), count))


def blows(found: list[Episode]) -> Iterator[Blow]:
    return (blow for episode in found for blow in episode.blows)


def test_a_seed_gives_the_same_blows_again_and_another_seed_others() -> None:
    assert some(1) == some(1)
    assert some(1) != some(2)


def test_every_kind_of_moment_comes_within_a_few_episodes() -> None:
    aims = [episode.aim for episode in some(1, count=9)]
    late = {Aim.RECYCLED, Aim.SUCCESSOR, Aim.DRAINING}

    assert set(aims) | late == set(Aim)
    assert len(late & set(aims)) == 1
    assert {episode.aim for episode in some(1)} == set(Aim)


def test_moments_are_drawn_from_the_whole_span() -> None:
    moments = [blow.moment for blow in blows(some(1))]

    assert all(0 <= moment < 1 for moment in moments)
    assert min(moments) < 0.05
    assert max(moments) > 0.95


def test_only_the_causes_that_were_asked_for_are_used() -> None:
    assert {blow.cause for blow in blows(some(1, (Cause.TERM,)))} == {Cause.TERM}
    assert {blow.cause for blow in blows(some(1))} == set(Cause)


def test_no_lone_suspect_is_struck_twice_by_what_would_quarantine_it() -> None:
    for episode in some(1, (Cause.ABORT, Cause.EXIT0, Cause.STOP)):
        if episode.aim is not Aim.SPARE:
            assert sum(NATURES[blow.cause].blames for blow in episode.blows) <= 1


def test_a_spare_is_struck_with_what_ends_it_at_once() -> None:
    first = [episode.blows[0].cause for episode in some(1) if episode.aim is Aim.SPARE]

    assert Cause.KILL in first
    assert not {Cause.STOP, Cause.METAL} & set(first)


def test_what_nobody_can_cause_from_outside_is_done_inside() -> None:
    for blow in blows(some(1)):
        assert blow.inside or NATURES[blow.cause].signal is not None
        assert not blow.inside or NATURES[blow.cause].inside
    assert {blow.inside for blow in blows(some(1)) if blow.cause is Cause.SEGV} == {True, False}


@pytest.mark.parametrize(
    ("cause", "inside", "expected"),
    [
        (Cause.KILL, False, {"killed"}),
        (Cause.ABORT, False, {"aborted", SIGNALLED}),
        (Cause.SEGV, True, {"segmentation_fault"}),
        (Cause.SEGV, False, {"segmentation_fault", SIGNALLED}),
        (Cause.TERM, False, {"terminated"}),
        (Cause.STOP, False, {"stopped"}),
        (Cause.METAL, True, {"gpu_hang"}),
    ],
)
def test_a_death_is_called_by_its_cause(cause: Cause, inside: bool, expected: set[str]) -> None:
    assert Blow(cause=cause, inside=inside, moment=0.0, metal="gpu_hang").death_classes == expected


def test_metals_words_have_the_drivers_code_in_them() -> None:
    for death_class in METAL_WORDS:
        assert metal_words(death_class).startswith("[METAL] Command buffer execution failed: ")
        assert "kIOGPUCommandBufferCallbackError" in metal_words(death_class)


def test_orders_are_the_same_for_the_same_seed_and_know_their_texts() -> None:
    first, again, other = (list(itertools.islice(scripted_orders(seed), 20)) for seed in (1, 1, 2))

    assert first == again
    assert first != other
    assert all(order.text and order.tokens == order.params["max_tokens"] for order in first)


def test_orders_are_drawn_each_once_before_any_comes_again() -> None:
    orders = list(itertools.islice(scripted_orders(1), 5))
    found = list(itertools.islice(drawn(orders, seed=3), 15))

    for start in (0, 5, 10):
        assert sorted(order.text for order in found[start : start + 5]) == sorted(o.text for o in orders)


def test_a_real_models_requests_are_greedy_and_seeded_with_penalties_and_stops_among_them() -> None:
    found = model_params(1, 24)

    assert found == model_params(1, 24)
    assert {params["temperature"] > 0 for params in found} == {True, False}
    assert len({params["seed"] for params in found}) == len(found)
    assert any("repetition_penalty" in params for params in found)
    assert any("stop" in params for params in found)
