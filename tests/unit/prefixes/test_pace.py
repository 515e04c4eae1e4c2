"""How long a chunk of a prompt is, by the time that it may take."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxsup.worker.engine.pace import Pace


def test_without_an_aim_a_chunk_is_as_long_as_may_be() -> None:
    assert Pace().tokens_in(math.inf, 2048) == 2048


def test_the_first_chunk_is_short_and_short_of_the_bound() -> None:
    assert Pace().tokens_in(10.0, 2048) == 32
    assert Pace().tokens_in(10.0, 20) == 20


def test_chunks_come_to_take_the_time_that_is_aimed_at() -> None:
    pace = Pace()
    for _ in range(40):
        tokens = pace.tokens_in(0.5, 2048)
        pass_s = 0.1 + 0.004 * tokens
        pace.learn(tokens, pass_s, tokens)

    assert tokens == pytest.approx(100, abs=8)


def test_a_short_rest_of_a_prompt_does_not_make_chunks_shorter() -> None:
    pace = Pace()
    pace.learn(100, 0.5, 100)
    pace.learn(4, 0.12, 100)

    assert pace.seconds_per_token == pytest.approx(0.005)


@given(
    st.lists(st.tuples(st.integers(1, 5000), st.floats(1e-4, 100.0)), max_size=20), st.floats(0.01, 3600.0)
)
def test_whatever_is_measured_a_chunk_has_some_tokens_and_no_more_than_allowed(
    measured: list[tuple[int, float]], target_s: float
) -> None:
    pace = Pace()
    for tokens, pass_s in measured:
        pace.learn(tokens, pass_s, tokens)

    assert 16 <= pace.tokens_in(target_s, 64) <= 64
