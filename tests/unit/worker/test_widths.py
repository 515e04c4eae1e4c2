"""Whether several tokens are fed at once, from what passes were measured to take."""

from hypothesis import given
from hypothesis import strategies as st

from mlxsup.worker.engine.widths import TOKENS_MAX, Ahead, Record, Widths


def measured(plain_s: float, token_s: float, sequences: int) -> Widths:
    widths = Widths()
    widths.learn(sequences, 1, plain_s)
    widths.learn(sequences, 5, plain_s + token_s * sequences * 4)
    return widths


def test_before_a_pass_has_been_measured_nothing_is_fed_ahead() -> None:
    assert Widths().choose([Ahead(3)]) == 0


def test_what_is_certain_is_fed_whole_where_more_tokens_cost_nothing() -> None:
    assert measured(0.1, 0.0, 1).choose([Ahead(3)]) == 3


def test_nothing_is_fed_where_a_token_more_costs_as_much_as_a_pass() -> None:
    assert measured(0.1, 0.1, 1).choose([Ahead(3)]) == 0


def test_one_sequence_does_not_slow_down_many_for_what_it_gains() -> None:
    aheads: list[Ahead | None] = [Ahead(16), *[None] * 15]

    assert measured(0.1, 0.01, 16).choose(aheads) == 0
    assert measured(0.1, 0.01, 1).choose(aheads[:1]) > 0


@given(
    plain_s=st.floats(0.001, 1.0),
    token_s=st.floats(0.0, 0.1),
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=16),
    right=st.none() | st.floats(0.5, 1.0),
)
def test_never_more_than_somebody_has_and_never_more_than_the_bound(
    plain_s: float, token_s: float, lengths: list[int], right: float | None
) -> None:
    aheads = [Ahead(length, right) if length else None for length in lengths]

    count = measured(plain_s, token_s, len(lengths)).choose(aheads)

    assert 0 <= count <= min(TOKENS_MAX, max(lengths))


@given(right=st.floats(0.5, 0.99), shorter=st.integers(1, 15))
def test_the_less_sure_guesses_are_the_fewer_are_fed(right: float, shorter: int) -> None:
    widths = measured(0.05, 0.003, 1)

    assert widths.choose([Ahead(TOKENS_MAX, right)]) <= widths.choose([Ahead(TOKENS_MAX)])
    assert widths.choose([Ahead(shorter, right)]) <= shorter


def test_guesses_that_take_longer_than_a_pass_are_not_made() -> None:
    widths = measured(0.05, 0.003, 1)

    assert widths.choose([Ahead(TOKENS_MAX, 0.9, token_s=0.005)]) > 0
    assert widths.choose([Ahead(TOKENS_MAX, 0.9, token_s=0.05)]) == 0


def test_a_sequence_whose_guesses_are_wrong_is_left_alone_and_tried_again_later() -> None:
    record = Record()
    for _ in range(3):
        record.learn(guessed=4, proved=0)
    may_guess = []
    for _ in range(65):
        may_guess.append(record.may_guess)
        record.learn(guessed=0, proved=0)
    record.learn(guessed=4, proved=0)

    assert may_guess == [False] * 64 + [True]
    assert not record.may_guess


def test_right_guesses_make_more_of_them_worth_it() -> None:
    record = Record()
    before = record.likely_right
    record.learn(guessed=8, proved=8)

    assert record.likely_right > before
