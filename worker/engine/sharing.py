"""Who waits for what another one is about to compute: of sequences that begin alike one reads the beginning, for all."""

import msgspec

from mlxsup.worker.engine.member import Member
from mlxsup.worker.engine.prefixes.stretches import as_tokens, common_tokens

# A shorter beginning is read as soon as it would have been waited for.
SHARED_TOKENS_MIN = 64


class Wait(msgspec.Struct, frozen=True, eq=False):
    """Until the leader has computed so many tokens."""

    follower: Member
    leader: Member
    tokens: int

    @property
    def is_over(self) -> bool:
        return self.tokens <= self.leader.cached


class Sharing:
    """`tokens_max`: a longer beginning could not be handed on. `is_cuttable`: of what a leader has computed any part can be."""

    def __init__(self, tokens_max: int, *, is_cuttable: bool) -> None:
        self._tokens_max = tokens_max
        self._is_cuttable = is_cuttable
        self._waits: dict[int, Wait] = {}

    def __contains__(self, member: Member) -> bool:
        """Whether it waits."""
        return member.id in self._waits

    def follow(self, member: Member, leaders: list[Member]) -> Wait | None:
        """It waits for the one of them with which it has most in common, if that is worth it."""
        waits = [self._wait(member, leader) for leader in leaders if leader is not member]
        best = max((wait for wait in waits if wait is not None), key=lambda wait: wait.tokens, default=None)
        if best is not None:
            self._waits[member.id] = best
        return best

    def awaited(self, leader: Member) -> list[int]:
        """After so many tokens somebody goes on from what it has computed."""
        return [wait.tokens for wait in self._waits.values() if wait.leader is leader]

    def served(self, leader: Member) -> list[Member]:
        """Those wait no longer that have what they waited for."""
        return self._end([wait for wait in self._waits.values() if wait.leader is leader and wait.is_over])

    def stop(self, member: Member) -> None:
        """It waits no longer."""
        self._waits.pop(member.id, None)

    def leave(self, member: Member) -> list[Member]:
        """It is gone, or computes no more of what others wait for: they wait no longer."""
        self.stop(member)
        return self._end([wait for wait in self._waits.values() if wait.leader is member])

    def _end(self, waits: list[Wait]) -> list[Member]:
        for wait in waits:
            del self._waits[wait.follower.id]
        return [wait.follower for wait in waits]

    def _wait(self, member: Member, leader: Member) -> Wait | None:
        if member.cache_key is None or leader.cache_key != member.cache_key or leader.chosen is not None:
            return None
        head = slice(member.cached, member.cached + SHARED_TOKENS_MIN)
        if len(member.tokens) <= head.stop or member.tokens[head] != leader.tokens[head]:
            return None
        common = common_tokens(as_tokens(member.tokens), as_tokens(leader.tokens))
        # Of each the last token is its own to read.
        tokens = min(common, len(member.tokens) - 1, len(leader.tokens) - 1)
        is_late = not self._is_cuttable and tokens < leader.cached
        if tokens < member.cached + SHARED_TOKENS_MIN or tokens > self._tokens_max or is_late:
            return None
        return Wait(member, leader, tokens)
