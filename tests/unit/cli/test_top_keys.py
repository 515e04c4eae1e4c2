"""Keys from the bytes of a terminal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxsup.supervisor.cli.top_keys import Key, read_keys


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"q", [Key.QUIT]),
        (b"s", [Key.SORT]),
        (b"\x1b[A\x1b[B", [Key.UP, Key.DOWN]),
        (b"\x1bOA\x1bOB", [Key.UP, Key.DOWN]),
        (b"\x1b[5~j\x1b[6~", [Key.PAGE_UP, Key.DOWN, Key.PAGE_DOWN]),
        # Home, F5, a mouse's report and a bracketed paste's begin: no letter in them is a key.
        (b"\x1b[H\x1b[15~\x1b[<0;1;1M\x1b[200~", []),
        ("äß\n\x00".encode(), []),
    ],
)
def test_a_key_is_known_by_what_terminals_send_for_it(data: bytes, keys: list[Key]) -> None:
    assert list(read_keys(data)) == keys


@given(st.binary(max_size=50))
def test_no_bytes_are_too_odd(data: bytes) -> None:
    assert len(list(read_keys(data))) <= len(data)
