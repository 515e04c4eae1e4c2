"""What is kept of texts that begin alike, where the next one goes on, and what goes first when there is too much."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mlxsup.worker.engine.prefixes.stretches import (
    Beginnings,
    Stretch,
    Stretches,
    as_tokens,
    common_tokens,
    reach,
)

MUCH = 1 << 30


def keep(
    kept: Stretches[str], text: str, *, key: str = "", first: int | None = None, is_whole: bool = False
) -> Stretch[str]:
    """Of this text, a token a character, what is not kept yet; a token takes a byte. Its payload are its own characters."""
    tokens = as_tokens(map(ord, text))
    start = reach(kept.cover(key, tokens)) if first is None else first
    before = Beginnings(key, tokens).digest(start)
    stretch = Stretch(before, start, tokens[start:], text[start:], len(text) - start, is_whole)
    kept.add(stretch)
    kept.cover(key, tokens)
    return stretch


def found(kept: Stretches[str], text: str, *, key: str = "", uses: bool = True) -> str:
    """The characters that the parts stand for."""
    parts = kept.cover(key, as_tokens(map(ord, text)), uses=uses)
    assert [part.first for part in parts] == [0, *(part.last for part in parts)][: len(parts)]
    return "".join(
        part.stretch.payload[part.first - part.stretch.start : part.last - part.stretch.start]
        for part in parts
    )


def test_a_text_goes_on_from_as_much_as_it_has_in_common_with_one_that_is_kept() -> None:
    kept = Stretches[str](MUCH)
    keep(kept, "the cat sat")

    assert found(kept, "the cat sat on the mat") == "the cat sat"
    assert found(kept, "the cat ran") == "the cat "
    assert found(kept, "a dog") == ""


def test_the_turns_of_a_conversation_lie_behind_each_other_and_nothing_is_kept_twice() -> None:
    kept = Stretches[str](MUCH)
    for end in (10, 14, 30):
        keep(kept, "0123456789abcdefghijklmnopqrstuvwxyz"[:end])

    assert len(kept) == 3
    assert kept.bytes == 30
    assert found(kept, "0123456789abcdefghijklmnopqrstuvwxyz") == "0123456789abcdefghijklmnopqrst"


def test_what_two_conversations_begin_with_is_kept_once_and_each_goes_on_behind_it() -> None:
    kept = Stretches[str](MUCH)
    keep(kept, "system: one asks")
    keep(kept, "system: other asks")

    assert kept.bytes == len("system: one asks") + len("ther asks")
    assert found(kept, "system: other asks more") == "system: other asks"
    assert found(kept, "system: one asks more") == "system: one asks"


def test_a_stretch_counts_only_behind_the_tokens_that_it_was_computed_behind() -> None:
    kept = Stretches[str](MUCH)
    keep(kept, "aaaabbbb", first=4)

    assert found(kept, "ccccbbbb") == ""
    keep(kept, "cccc")
    assert found(kept, "ccccbbbb") == "cccc"
    keep(kept, "aaaa", first=0)
    assert found(kept, "aaaabbbb") == "aaaabbbb"


def test_what_was_computed_with_something_else_is_of_no_use() -> None:
    kept = Stretches[str](MUCH)
    keep(kept, "the cat sat", key="german")

    assert found(kept, "the cat sat", key="") == ""
    assert found(kept, "the cat sat", key="german") == "the cat sat"


def test_what_can_not_be_cut_is_of_use_with_all_of_its_tokens_only() -> None:
    kept = Stretches[str](MUCH)
    keep(kept, "the cat", first=0, is_whole=True)
    keep(kept, "the cat sat", first=0, is_whole=True)

    assert found(kept, "the cat sat on") == "the cat sat"
    assert found(kept, "the cat sa") == "the cat"
    assert found(kept, "the ca") == ""


def test_with_too_much_the_least_recently_used_goes_first_and_the_end_of_a_text_before_its_beginning() -> (
    None
):
    kept = Stretches[str](12)
    keep(kept, "aaaa")
    keep(kept, "aaaabbbb")
    keep(kept, "cccc")
    assert found(kept, "aaaabbbb") == "aaaabbbb"

    keep(kept, "dddd")
    assert found(kept, "cccc", uses=False) == ""
    keep(kept, "eeee")
    assert found(kept, "aaaabbbb", uses=False) == "aaaa"
    assert kept.bytes == 12


def test_what_is_too_large_is_not_kept_and_makes_nothing_go() -> None:
    kept = Stretches[str](8)
    keep(kept, "aaaa")
    large = Stretch(b"", 0, as_tokens(range(9)), "", 9)

    assert kept.add(large) == [large]
    assert found(kept, "aaaa") == "aaaa"


def test_one_that_was_dropped_is_gone_and_dropping_it_again_does_nothing() -> None:
    kept = Stretches[str](MUCH)
    one, _ = keep(kept, "aaaa"), keep(kept, "bbbb")
    kept.drop(one)
    kept.drop(one)

    assert [stretch.payload for stretch in kept] == ["bbbb"]
    assert (kept.bytes, found(kept, "aaaa")) == (4, "")


TEXTS = st.lists(st.text(alphabet="ab", min_size=1, max_size=24), min_size=1, max_size=20)


@given(TEXTS, st.text(alphabet="ab", min_size=1, max_size=24))
def test_what_is_found_is_the_longest_beginning_that_any_kept_text_has(texts: list[str], asked: str) -> None:
    kept = Stretches[str](MUCH)
    for text in texts:
        keep(kept, text)

    longest = max(common_tokens(as_tokens(map(ord, asked)), as_tokens(map(ord, text))) for text in texts)
    assert found(kept, asked) == asked[:longest]


@given(TEXTS, st.integers(1, 40))
def test_the_bound_holds_whatever_comes_and_what_is_left_is_right(texts: list[str], bytes_max: int) -> None:
    kept = Stretches[str](bytes_max)
    for text in texts:
        keep(kept, text)
        assert kept.bytes == sum(stretch.nbytes for stretch in kept) <= bytes_max
        assert text.startswith(found(kept, text))


def test_beginnings_have_the_same_digest_however_they_are_walked() -> None:
    tokens = np.arange(100, dtype=np.int32)
    steps = Beginnings("key", tokens)
    assert [steps.digest(10), steps.digest(90)] == [
        Beginnings("key", tokens).digest(10),
        Beginnings("key", tokens[:90]).digest(90),
    ]
    assert Beginnings("key", tokens).digest(0) != Beginnings("other", tokens).digest(0)
