import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxsup.supervisor.models.fetcher.ranges import Answer, judge


@pytest.mark.parametrize(
    ("status", "content_range", "content_length", "answer"),
    [
        (206, "bytes 40-99/100", 60, Answer.APPEND),
        (206, "bytes 40-99/*", 60, Answer.APPEND),
        (206, "bytes 40-59/100", 20, Answer.APPEND),
        (200, None, 100, Answer.REWRITE),
        (200, None, None, Answer.REWRITE),
        (200, "bytes 40-99/100", 100, Answer.REWRITE),
        (200, None, 99, Answer.OTHER_FILE),
        (206, "bytes 0-99/100", 100, Answer.START_OVER),
        (206, "bytes 41-99/100", 59, Answer.START_OVER),
        (206, None, 60, Answer.START_OVER),
        (206, "lines 40-99/100", 60, Answer.START_OVER),
        (206, "bytes 40-100/101", 61, Answer.OTHER_FILE),
        (206, "bytes 40-100/*", 61, Answer.OTHER_FILE),
    ],
)
def test_an_answer_means_what_its_status_and_headers_say(
    status: int, content_range: str | None, content_length: int | None, answer: Answer
) -> None:
    found = judge(
        have=40, total=100, status=status, content_range=content_range, content_length=content_length
    )
    assert found is answer


@given(st.integers(1, 99), st.integers(0, 200), st.integers(0, 200), st.integers(0, 200))
def test_nothing_is_appended_but_what_follows_what_is_here_in_the_same_file(
    have: int, first: int, last: int, total: int
) -> None:
    text = f"bytes {first}-{last}/{total}"
    answer = judge(have=have, total=100, status=206, content_range=text, content_length=None)
    if answer is Answer.APPEND:
        assert (first, total) == (have, 100)
        assert last < 100
