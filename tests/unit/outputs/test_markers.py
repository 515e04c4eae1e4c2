from hypothesis import given
from hypothesis import strategies as st

from mlxsup.worker.engine.outputs.markers import Found, first_marker, undecided_chars

TEXTS = st.text("ab", max_size=12)
MARKERS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=4)


def test_the_marker_that_is_complete_first_is_the_first_one() -> None:
    assert first_marker("xabcd", ["abcd", "bc"]) == Found(2, 4, "bc")


def test_of_markers_that_end_together_the_longest_is_the_first_one() -> None:
    assert first_marker("xabc", ["bc", "abc", "c"]) == Found(1, 4, "abc")


def test_no_marker_is_found_where_there_is_none() -> None:
    assert first_marker("xyz", ["a"]) is None
    assert first_marker("xyz", []) is None


@given(TEXTS, MARKERS)
def test_the_end_that_is_undecided_is_the_longest_beginning_of_a_marker(
    text: str, markers: list[str]
) -> None:
    undecided = undecided_chars(text, markers)
    beginnings = {marker[:end] for marker in markers for end in range(len(marker))}

    assert undecided == max((len(begun) for begun in beginnings if text.endswith(begun)), default=0)
