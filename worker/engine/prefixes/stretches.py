"""Which beginnings of texts are kept, in stretches that follow one another, the least recently used dropped first. Pure.

A stretch covers tokens from `start` on, and counts for every text that has the same tokens before it: those are named by
their digest. So the turns of a conversation lie behind each other, each token once, and what several conversations begin
with is kept once for all of them. Whoever goes on from within a stretch has its beginning only: nothing is ever split.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Generic, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

PayloadT = TypeVar("PayloadT")

Tokens = npt.NDArray[np.int32]

DIGEST_BYTES = 16


class Stretch(msgspec.Struct, Generic[PayloadT], eq=False):
    """`before` is the digest of its key and of the tokens before it. `is_whole`: of no use but with all of its tokens.

    `is_lasting`: it is on the disk, too, or on its way there.
    """

    before: bytes
    start: int
    tokens: Tokens
    payload: PayloadT
    nbytes: int
    is_whole: bool = False
    is_lasting: bool = False

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


class Part(msgspec.Struct, Generic[PayloadT], frozen=True, eq=False):
    """Of a stretch what stands for the tokens from `first` up to `last`."""

    stretch: Stretch[PayloadT]
    first: int
    last: int


class Beginnings:
    """The digests of growing beginnings of one text; `key` tells apart what may not be shared."""

    def __init__(self, key: str, tokens: Tokens) -> None:
        self._hash = blake2b(key.encode() + b"\0", digest_size=DIGEST_BYTES)
        self._tokens = tokens
        self._hashed = 0

    def digest(self, count: int) -> bytes:
        """Of the first so many tokens, no fewer than in the call before."""
        self._hash.update(self._tokens[self._hashed : count].tobytes())
        self._hashed = count
        return self._hash.copy().digest()


class Stretches(Generic[PayloadT]):
    """At most `bytes_max` bytes of them. Safe in several threads."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes = 0
        self._lock = threading.Lock()
        # By where they start and what comes before.
        self._by_start: dict[int, dict[bytes, list[Stretch[PayloadT]]]] = {}
        # The least recently used first.
        self._order: OrderedDict[int, Stretch[PayloadT]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Stretch[PayloadT]]:
        with self._lock:
            return iter(list(self._order.values()))

    def cover(self, key: str, tokens: Tokens, *, uses: bool = True) -> list[Part[PayloadT]]:
        """Parts of stretches, one behind the other, for as many of the first tokens as there are; `uses`: they count as used."""
        with self._lock:
            parts = self._cover(key, tokens)
            if uses:
                self._use(part.stretch for part in parts)
            return parts

    def add(self, stretch: Stretch[PayloadT]) -> list[Stretch[PayloadT]]:
        """Keep it. Gives what had to go for that, itself if it is too large."""
        with self._lock:
            if stretch.nbytes > self.bytes_max:
                return [stretch]
            self._by_start.setdefault(stretch.start, {}).setdefault(stretch.before, []).append(stretch)
            self._order[id(stretch)] = stretch
            self.bytes += stretch.nbytes
            gone = []
            while self.bytes > self.bytes_max:
                gone.append(next(iter(self._order.values())))
                self._drop(gone[-1])
            return gone

    def drop(self, stretch: Stretch[PayloadT]) -> None:
        """One that has gone already is none."""
        with self._lock:
            if id(stretch) in self._order:
                self._drop(stretch)

    def _cover(self, key: str, tokens: Tokens) -> list[Part[PayloadT]]:
        beginnings = Beginnings(key, tokens)
        usable: list[tuple[int, Stretch[PayloadT]]] = []
        for start in sorted(start for start in self._by_start if start < len(tokens)):
            for stretch in self._by_start[start].get(beginnings.digest(start), ()):
                reach = start + common_tokens(stretch.tokens, tokens[start:])
                if reach > start and (reach == stretch.end or not stretch.is_whole):
                    usable.append((reach, stretch))
        parts: list[Part[PayloadT]] = []
        covered = 0
        while True:
            within = [found for found in usable if found[1].start <= covered < found[0]]
            if not within:
                return parts
            reach, stretch = max(within, key=lambda found: found[0])
            parts.append(Part(stretch, covered, reach))
            covered = reach

    def _use(self, stretches: Iterable[Stretch[PayloadT]]) -> None:
        """What the others go on from comes last, and is dropped last."""
        for stretch in reversed(list(stretches)):
            self._order.move_to_end(id(stretch))

    def _drop(self, stretch: Stretch[PayloadT]) -> None:
        del self._order[id(stretch)]
        self.bytes -= stretch.nbytes
        alike = self._by_start[stretch.start]
        alike[stretch.before].remove(stretch)
        if not alike[stretch.before]:
            del alike[stretch.before]
        if not alike:
            del self._by_start[stretch.start]


def reach(parts: list[Part[PayloadT]]) -> int:
    """So many of the first tokens they cover."""
    return parts[-1].last if parts else 0


def as_tokens(tokens: Iterable[int]) -> Tokens:
    return np.fromiter(tokens, dtype=np.int32)


def common_tokens(one: Tokens, other: Tokens) -> int:
    """So many of their first tokens are the same."""
    length = min(len(one), len(other))
    differs = one[:length] != other[:length]
    at = int(differs.argmax()) if length else 0
    return at if length and differs[at] else length
