"""Finds markers in text that comes in pieces. Pure."""

from collections.abc import Iterable

import msgspec


class Found(msgspec.Struct, frozen=True):
    """`text[begin:end]` is the marker."""

    begin: int
    end: int
    marker: str


def first_marker(text: str, markers: Iterable[str]) -> Found | None:
    """The one that is complete first; among those that end together, the longest."""
    found: Found | None = None
    for marker in markers:
        begin = text.find(marker)
        if begin < 0:
            continue
        end = begin + len(marker)
        if found is None or (end, begin) < (found.end, found.begin):
            found = Found(begin, end, marker)
    return found


def undecided_chars(text: str, markers: Iterable[str]) -> int:
    """Length of the longest end of `text` that a marker begins with, and goes on behind."""
    longest = 0
    for marker in markers:
        for length in range(min(len(marker) - 1, len(text)), longest, -1):
            if text.endswith(marker[:length]):
                longest = length
                break
    return longest
