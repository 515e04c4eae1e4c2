"""Whose prompt is read next of those that wait to be read, or have begun.

Rule 1: the more urgent turn goes first. Rule 2: within a turn who has least left goes first, but of two chunks one is of the
prompt that was begun first. Rule 3: those that begin together share a chunk, so that the first of them has its text soon; one
that is longer than a chunk is read by itself. Rule 4: who waits for what another one computes does not begin.
"""

import msgspec

from mlxsup.worker.engine.forward import Forward
from mlxsup.worker.engine.member import Member
from mlxsup.worker.engine.pace import Pace
from mlxsup.worker.engine.prompts import Prompts
from mlxsup.worker.engine.sharing import Sharing

# mlx-lm's own bound on prompts that are prefilled together.
_PREFILL_SEQUENCES_MAX = 8


class Next(msgspec.Struct, frozen=True, eq=False):
    """Prompts that have begun, or else newcomers."""

    turn: int
    prompts: Prompts | None
    newcomers: list[Member]

    @property
    def left(self) -> int:
        """Tokens until all are read."""
        members = self.newcomers if self.prompts is None else self.prompts.members
        return max(member.unread for member in members)

    @property
    def has_begun_a_pass(self) -> bool:
        return self.prompts is not None and self.prompts.is_put_aside

    def tokens(self, chunk_tokens: int) -> int:
        """Of the chunk that it comes to."""
        if self.prompts is not None and self.prompts.is_put_aside:
            return self.prompts.tokens_put_aside
        members = self.newcomers if self.prompts is None else self.prompts.members
        return sum(min(chunk_tokens, member.unread) for member in members)


class Reading:
    def __init__(self, forward: Forward, pace: Pace, sharing: Sharing) -> None:
        self._forward = forward
        self._pace = pace
        self._sharing = sharing
        # By their turns.
        self.waiting: list[Member] = []
        # In the order in which they began.
        self._begun: list[Prompts] = []
        # Turns in which the last chunk was not of the prompt that was begun first.
        self._overtaken: set[int] = set()

    @property
    def begun(self) -> list[Member]:
        return [member for prompts in self._begun for member in prompts.members]

    def add(self, member: Member) -> None:
        self.waiting.append(member)
        self.waiting.sort(key=lambda waiting: waiting.turn)

    def prompts_of(self, member: Member) -> Prompts | None:
        return next((prompts for prompts in self._begun if member in prompts.members), None)

    def next(self, room: int, chunk_tokens: int) -> Next | None:
        """`room`: so many may begin."""
        waiting = [m for m in self.waiting if m.chosen is None and m not in self._sharing] if room > 0 else []
        turns = [prompts.turn for prompts in self._begun] + [member.turn for member in waiting]
        if not turns:
            return None
        turn = min(turns)
        begun = [Next(turn, prompts, []) for prompts in self._begun if prompts.turn == turn]
        found = list(begun)
        newcomers = _together([member for member in waiting if member.turn == turn], room, chunk_tokens)
        if newcomers:
            found.append(Next(turn, None, newcomers))
        if begun and turn in self._overtaken:
            return begun[0]
        return min(found, key=lambda each: each.left)

    def begin(self, chosen: Next) -> Prompts:
        """The prompts of which a chunk is to be read; newcomers that have more than one token have begun."""
        first = next((prompts for prompts in self._begun if prompts.turn == chosen.turn), None)
        self._overtaken.discard(chosen.turn)
        if first is not None and chosen.prompts is not first:
            self._overtaken.add(chosen.turn)
        if chosen.prompts is not None:
            return chosen.prompts
        self.waiting = [member for member in self.waiting if member not in chosen.newcomers]
        prompts = Prompts(self._forward, self._pace, chosen.turn)
        prompts.join([member for member in chosen.newcomers if member.unread > 1])
        self._begun.append(prompts)
        return prompts

    def clear(self) -> None:
        """Prompts of nobody are none."""
        self._begun = [prompts for prompts in self._begun if prompts.members]


def _together(waiting: list[Member], room: int, chunk_tokens: int) -> list[Member]:
    """The shorter ones of a batch are padded."""
    # In the order in which they came, but who needs more than a chunk behind those who don't.
    waiting = sorted(waiting, key=lambda member: member.unread > chunk_tokens)
    together = waiting[:1]
    for member in waiting[1 : min(room, _PREFILL_SEQUENCES_MAX)]:
        longest = max(min(chunk_tokens, each.unread) for each in [*together, member])
        if longest * (len(together) + 1) > chunk_tokens:
            break
        together.append(member)
    return together
