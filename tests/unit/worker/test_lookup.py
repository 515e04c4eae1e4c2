"""Guesses by what a text has said before."""

from hypothesis import given
from hypothesis import strategies as st

from mlxsup.worker.engine.lookup import Lookup

tokens = st.lists(st.integers(0, 3), max_size=60)


def test_what_followed_the_last_three_tokens_is_guessed_to_follow_again() -> None:
    assert Lookup().guess([1, 2, 3, 4, 5, 1, 2, 3], 3) == [4, 5, 1]


def test_the_latest_time_counts() -> None:
    assert Lookup().guess([1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3], 1) == [5]


def test_a_text_that_goes_round_is_guessed_to_go_on_so() -> None:
    assert Lookup().guess([7, 1, 2, 1, 2, 1, 2], 5) == [1, 2, 1, 2, 1]


def test_what_never_came_is_not_guessed() -> None:
    lookup = Lookup()

    assert lookup.guess([], 4) == []
    assert lookup.guess([1, 2], 4) == []
    assert lookup.guess([1, 2, 3, 4, 5], 4) == []


@given(text=tokens, cuts=st.lists(st.integers(0, 60)), count=st.integers(1, 8))
def test_it_guesses_the_same_whether_it_saw_the_text_grow_or_not(
    text: list[int], cuts: list[int], count: int
) -> None:
    grown = Lookup()
    for cut in sorted(cuts):
        grown.guess(text[:cut], count)

    assert grown.guess(text, count) == Lookup().guess(text, count)
