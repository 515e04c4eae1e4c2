"""Vectors as clients get them: the same numbers, in few digits."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxsup.worker.engine.embedding.values import NUMBER_BYTES_MAX, as_json, normalized

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(FLOATS, min_size=1, max_size=50))
def test_every_number_is_told_exactly_and_within_its_bytes(numbers: list[float]) -> None:
    vector = np.array(numbers, dtype=np.float32)
    text = as_json(vector)

    assert np.array_equal(np.array(msgspec.json.decode(text), dtype=np.float32), vector)
    assert len(text) <= 2 + NUMBER_BYTES_MAX * len(numbers)


@given(st.lists(st.floats(width=32, min_value=-1e6, max_value=1e6), min_size=2, max_size=50))
def test_a_normalized_vector_has_length_one_and_its_direction(numbers: list[float]) -> None:
    vector = np.array(numbers, dtype=np.float32)
    length = float(np.linalg.norm(vector.astype(np.float64)))
    found = normalized(vector).astype(np.float64)

    if length > 1e-30:
        assert float(np.linalg.norm(found)) == pytest.approx(1.0, abs=1e-6)
        assert found == pytest.approx(vector / length, abs=1e-6)


def test_what_has_no_direction_stays_as_it_is() -> None:
    assert normalized(np.zeros(3, dtype=np.float32)).tolist() == [0.0, 0.0, 0.0]
