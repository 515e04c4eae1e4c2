"""What sequences have computed of their texts, for those that begin like them. For the MLX thread, but for `find`.

Rule 1: what is kept is never changed; whoever goes on from it has a copy, or reads it. Rule 2: a cut is computed behind
everything that has been asked for, and costs no step more than the copying. Rule 3: on the disk is what may well be asked for
again: conversations, and what has been used by another sequence.
"""

from collections.abc import Callable

import mlx.core as mx
import msgspec
import numpy as np

from mlxsup.worker.engine.interface import IsWanted
from mlxsup.worker.engine.member import Caches, Member
from mlxsup.worker.engine.prefixes.caches import (
    Kept,
    Piece,
    Whole,
    copy_whole,
    cut_piece,
    join_pieces,
)
from mlxsup.worker.engine.prefixes.disk import Disk, Found
from mlxsup.worker.engine.prefixes.stored import kept_of, label_of, tensors_of
from mlxsup.worker.engine.prefixes.stretches import (
    Beginnings,
    Part,
    Stretch,
    Stretches,
    Tokens,
    as_tokens,
    reach,
)

# A shorter stretch costs more to keep than to compute.
STRETCH_TOKENS_MIN = 16

Extract = Callable[[], tuple[Caches, int]]
"""The caches of a batch, and a row of them."""


class _Unwritten(msgspec.Struct, frozen=True, eq=False):
    """`tokens` are all up to the last one of the stretch."""

    key: str
    tokens: Tokens
    stretch: Stretch[Kept]


class Prefixes:
    """In memory at most `bytes_max` bytes, of which a token takes `bytes_per_token`.

    On the disk, if there is one, is what has `disk_tokens_min` tokens at least.
    """

    def __init__(
        self,
        *,
        is_cuttable: bool,
        bytes_max: int,
        bytes_per_token: int,
        disk: Disk | None = None,
        disk_tokens_min: int = 0,
    ) -> None:
        self.is_cuttable = is_cuttable
        self.tokens_max = bytes_max // max(1, bytes_per_token)
        self._kept: Stretches[Kept] = Stretches(bytes_max)
        self._disk = disk
        self._disk_tokens_min = disk_tokens_min
        # Cut, and not asked for yet; asked for, and perhaps not computed yet.
        self._cut: list[_Unwritten] = []
        self._asked: list[_Unwritten] = []

    @property
    def bytes(self) -> int:
        return self._kept.bytes

    # For the preparation thread:

    def find(self, key: str | None, prompt: list[int]) -> Found | None:
        """What the disk has more of this prompt than the memory."""
        if self._disk is None or key is None or len(prompt) < self._disk_tokens_min:
            return None
        tokens = as_tokens(prompt[:-1])
        known = reach(self._kept.cover(key, tokens, uses=False))
        if self._disk.reach(key, tokens) < known + STRETCH_TOKENS_MIN:
            return None
        return Found(key, tokens, self._disk.read(key, tokens, known))

    # For the MLX thread:

    def admit(self, found: Found) -> None:
        """Into memory; what goes on from others comes first, and is dropped first."""
        for stored in reversed(found.stored):
            label = stored.label
            end = label.start + len(label.tokens)
            if reach(self._kept.cover(found.key, found.tokens[:end], uses=False)) >= min(
                end, len(found.tokens)
            ):
                continue
            try:
                kept = kept_of(label, stored.tensors)
            except ValueError:
                # Of another version of mlx-lm's caches that says it is this one.
                continue
            stretch = Stretch(
                label.before, label.start, label.tokens, kept, _nbytes(kept), label.is_whole, is_lasting=True
            )
            self._kept.add(stretch)

    def take(self, member: Member) -> None:
        """What is kept of its tokens' beginning, if that is more than it has; its last token is always left to read."""
        if member.cache_key is None or member.chosen is not None:
            return
        tokens = as_tokens(member.tokens[:-1])
        parts = self._kept.cover(member.cache_key, tokens, uses=False)
        count = reach(parts)
        if count < member.cached + STRETCH_TOKENS_MIN:
            return
        self._kept.cover(member.cache_key, tokens)
        member.caches = _caches_of(parts)
        member.cached = member.taken = count
        if count >= self._disk_tokens_min:
            self._outlive(member.cache_key, tokens, parts)

    def offer(self, member: Member, count: int, extract: Extract) -> None:
        """The first `count` of its tokens are computed, in these caches; where caches can't be cut, no others are."""
        if member.cache_key is None or count < STRETCH_TOKENS_MIN:
            return
        tokens = as_tokens(member.tokens[:count])
        parts = self._kept.cover(member.cache_key, tokens)
        first = reach(parts) if self.is_cuttable else 0
        if count - reach(parts) >= STRETCH_TOKENS_MIN:
            self._keep(member, tokens, first, extract)
        if member.is_lasting and count >= self._disk_tokens_min:
            self._outlive(member.cache_key, tokens, self._kept.cover(member.cache_key, tokens))

    def settle(self) -> None:
        """Between two steps: what was cut before the last one is asked for, and what was asked for then is computed."""
        asked, self._asked, self._cut = self._asked, self._cut, []
        for each in asked:
            self._write(each)
        if self._asked:
            mx.async_eval([array for each in self._asked for array in each.stretch.payload.arrays()])

    def rest(self, is_wanted: IsWanted) -> None:
        """There is nothing to compute: until everything is settled, or something comes."""
        for each in [*self._asked, *self._cut]:
            for array in each.stretch.payload.arrays():
                if is_wanted():
                    return
                mx.eval(array)
        self.settle()
        self.settle()

    def _keep(self, member: Member, tokens: Tokens, first: int, extract: Extract) -> None:
        caches, row = extract()
        kept: Kept
        if self.is_cuttable:
            kept = cut_piece(caches, row, first, len(tokens))
        else:
            kept = Whole([cache.extract(row) for cache in caches])
        assert member.cache_key is not None
        before = Beginnings(member.cache_key, tokens).digest(first)
        stretch = Stretch(before, first, tokens[first:], kept, _nbytes(kept), not self.is_cuttable)
        if stretch not in self._kept.add(stretch):
            self._cut.append(_Unwritten(member.cache_key, tokens, stretch))

    def _outlive(self, key: str, tokens: Tokens, parts: list[Part[Kept]]) -> None:
        """All that these go on from, too: alone nothing of it is of use."""
        if self._disk is None:
            return
        unsettled = [each.stretch for each in (*self._cut, *self._asked)]
        for part in parts:
            stretch = part.stretch
            if not stretch.is_lasting:
                stretch.is_lasting = True
                if not any(stretch is other for other in unsettled):
                    text = tokens[: stretch.start]
                    self._asked.append(_Unwritten(key, _joined(text, stretch.tokens), stretch))

    def _write(self, each: _Unwritten) -> None:
        stretch = each.stretch
        if self._disk is not None and stretch.is_lasting:
            label = label_of(stretch, self._disk.identity)
            stretch.is_lasting = self._disk.write(each.key, each.tokens, label, tensors_of(stretch.payload))


def _caches_of(parts: list[Part[Kept]]) -> Caches:
    last = parts[-1].stretch.payload
    if isinstance(last, Whole):
        return copy_whole(last)
    return join_pieces(
        [
            (part.stretch.payload, part.first - part.stretch.start, part.last - part.stretch.start)
            for part in parts
            if isinstance(part.stretch.payload, Piece)
        ]
    )


def _nbytes(kept: Kept) -> int:
    return sum(array.nbytes for array in kept.arrays())


def _joined(tokens: Tokens, others: Tokens) -> Tokens:
    return np.concatenate([tokens, others])
