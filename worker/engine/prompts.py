"""Prompts that are read together, a chunk of each at a time.

mlx-lm's own BatchGenerator decodes before all else. Here the caller decides who is next, between any two stages of a
pass. The numbers are the same.
"""

import time

import mlx.core as mx

from mlxsup.worker.engine.caches import extended, keep_rows, merged
from mlxsup.worker.engine.forward import Forward
from mlxsup.worker.engine.interface import IsWanted
from mlxsup.worker.engine.member import Caches, Member
from mlxsup.worker.engine.pace import Pace
from mlxsup.worker.engine.stages import Stages, cache_arrays, cache_marks


class Prompts:
    """Of one turn. Each member has more than one token to read: the last one gives the first of the answer."""

    def __init__(self, forward: Forward, pace: Pace, turn: int) -> None:
        self._forward = forward
        self._pace = pace
        self.turn = turn
        self.members: list[Member] = []
        self._caches: Caches = []
        # Of the pass that is being computed: the tokens of each member, and the time that was spent on it.
        self._reads: list[int] = []
        self._stages = Stages()
        self._spent_s = 0.0
        self._chunk_tokens = 0

    @property
    def is_put_aside(self) -> bool:
        return bool(self._reads)

    @property
    def tokens_put_aside(self) -> int:
        return sum(self._reads)

    def join(self, members: list[Member]) -> None:
        if members:
            self._caches = extended(self._caches, merged(members))
            self.members += members
            for member in members:
                # Of one that has read nothing they stay empty.
                member.caches = [] if member.cached else member.caches

    def read(self, chunk_tokens: int, is_wanted: IsWanted) -> bool:
        """A chunk of each, or what is left of the last one; False when it is put aside before its end."""
        began_s = time.monotonic()
        if not self._reads:
            self._build(chunk_tokens)
        over = self._stages.run(is_wanted)
        if over:
            mx.eval(cache_arrays(self._caches))
            mx.clear_cache()
            computed = max(self._reads) * len(self._reads)
            self._spent_s += time.monotonic() - began_s
            self._pace.learn(computed, self._spent_s, self._chunk_tokens)
            self._spent_s = 0.0
            for member, tokens in zip(self.members, self._reads, strict=True):
                member.cached += tokens
            self._reads = []
        else:
            self._spent_s += time.monotonic() - began_s
        return over

    def _build(self, chunk_tokens: int) -> None:
        self._chunk_tokens = chunk_tokens
        self._reads = [min(chunk_tokens, member.unread - 1) for member in self.members]
        longest = max(self._reads)
        padding = [longest - tokens for tokens in self._reads]
        rows = [
            member.tokens[member.cached : member.cached + tokens] + [0] * pad
            for member, tokens, pad in zip(self.members, self._reads, padding, strict=True)
        ]
        padded = any(padding)
        if padded:
            for cache in self._caches:
                cache.prepare(lengths=list(self._reads), right_padding=padding)
        self._forward(self.members, mx.array(rows), self._caches)
        if padded:
            for cache in self._caches:
                cache.finalize()
        computed = longest * len(rows)
        self._stages = Stages(cache_marks(self._caches, self._pace.seconds_per_token * computed))

    def place_of(self, member: Member) -> tuple[Caches, int]:
        """The caches of all of them, and its row."""
        return self._caches, self.members.index(member)

    def cached_then(self, member: Member) -> int:
        """So many of its tokens are in the caches once the pass that has begun is computed."""
        return member.cached + (self._reads[self.members.index(member)] if self._reads else 0)

    def take_read(self) -> list[Member]:
        """Those of whose prompts only the last token is left, with their caches."""
        done = [at for at, member in enumerate(self.members) if member.unread == 1]
        members = [self.members[at] for at in done]
        for at, member in zip(done, members, strict=True):
            member.caches = [cache.extract(at) for cache in self._caches]
        self._keep([at for at in range(len(self.members)) if at not in set(done)])
        return members

    def remove(self, member: Member, *, keeps_caches: bool) -> None:
        """It is taken out; `keeps_caches`: with what it has read, unless that is being computed."""
        at = self.members.index(member)
        if keeps_caches and self._reads:
            # Asked for at its end, the pass that has begun is as good as done.
            member.cached += self._reads[at]
        if keeps_caches and member.cached:
            member.caches = [cache.extract(at) for cache in self._caches]
        self._keep([other for other in range(len(self.members)) if other != at])

    def _keep(self, rows: list[int]) -> None:
        if len(rows) == len(self.members):
            return
        self.members = [self.members[at] for at in rows]
        self._reads = [self._reads[at] for at in rows] if self._reads else []
        keep_rows(self._caches, rows)
        if not rows:
            self._stages = Stages()
            self._spent_s = 0.0
