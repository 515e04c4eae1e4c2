"""The line about a signal is read as it is written, and no other text passes for one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxsup.supervisor.recovery.signal_origin import Origin, read_origin

KEY = "0123456789abcdef"
OTHER_KEY = "fedcba9876543210"
SENT = f"mlxsup: signal 11 sent by process 1234 ({KEY})"


@pytest.mark.parametrize(
    ("line", "origin"),
    [
        (SENT, Origin(number=11, sender_pid=1234)),
        (f"mlxsup: signal 15 sent by process 0 ({KEY})", Origin(number=15, sender_pid=0)),
        (f"mlxsup: signal 6 raised here ({KEY})", Origin(number=6)),
    ],
)
@pytest.mark.parametrize("key", [KEY, None])
def test_a_line_with_the_workers_key_is_believed_and_before_the_key_is_known_any(
    line: str, origin: Origin, key: str | None
) -> None:
    assert read_origin(line, key) == origin


@pytest.mark.parametrize("key", [OTHER_KEY, ""])
def test_a_line_with_another_key_is_somebodys_text(key: str) -> None:
    assert read_origin(SENT, key) is None


@pytest.mark.parametrize(
    "line",
    [
        f" {SENT}",
        f"{SENT} ",
        f"ValueError: {SENT}",
        f"{SENT}\n",
        "mlxsup: signal 11 sent by process 1234",
        "mlxsup: signal 11 sent by process 1234 ()",
        f"mlxsup: signal 11 sent by process -1 ({KEY})",
        f"mlxsup: signal 11 sent by process 12345678901 ({KEY})",
        f"mlxsup: signal SIGSEGV raised here ({KEY})",
        f"mlxsup: signal 1111 raised here ({KEY})",
        "",
    ],
)
@pytest.mark.parametrize("key", [KEY, None])
def test_what_is_not_the_line_to_the_letter_is_not_one(line: str, key: str | None) -> None:
    assert read_origin(line, key) is None


@given(st.text(), st.integers(1, 64), st.integers(0, 2**22))
def test_no_prompt_makes_a_line_without_the_key(text: str, number: int, pid: int) -> None:
    for line in (text, f"mlxsup: signal {number} sent by process {pid} ({text})"):
        assert read_origin(line, KEY) is None


@pytest.mark.parametrize(
    ("origin", "told"),
    [
        (Origin(number=6), "raised by itself"),
        (Origin(number=6, sender_pid=0), "sent from outside its container"),
        (Origin(number=6, sender_pid=12, sender_name="zsh"), "sent by process 12 (zsh)"),
        (Origin(number=6, sender_pid=12), "sent by process 12 (which has ended)"),
    ],
)
def test_it_is_told_in_words(origin: Origin, told: str) -> None:
    assert str(origin) == told
