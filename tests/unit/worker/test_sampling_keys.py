from hypothesis import given
from hypothesis import strategies as st

from mlxsup.worker.engine.sampling import token_key

SEEDS = st.integers(-(2**63), 2**64 - 1)
POSITIONS = st.integers(0, 2**24)


@given(SEEDS, POSITIONS)
def test_a_key_is_two_32_bit_words_that_seed_and_position_determine(seed: int, position: int) -> None:
    first, second = token_key(seed, position)

    assert 0 <= first < 2**32
    assert 0 <= second < 2**32
    assert token_key(seed, position) == (first, second)


def test_keys_of_neighbouring_seeds_and_positions_do_not_repeat() -> None:
    keys = {token_key(seed, position) for seed in range(-100, 100) for position in range(100)}

    assert len(keys) == 200 * 100


def test_the_bits_of_keys_are_balanced() -> None:
    keys = [token_key(seed, position) for seed in range(50) for position in range(200)]
    for word in range(2):
        for bit in range(32):
            ones = sum(key[word] >> bit & 1 for key in keys)
            # Five standard deviations of a fair coin thrown ten thousand times.
            assert abs(ones - 5000) < 250
