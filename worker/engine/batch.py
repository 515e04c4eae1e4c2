"""Which of one worker's sequences is computed next: prompts by urgency and arrival, answers all together.

Rule 1: prompts are read in the order of their urgency, then of their arrival; those of one turn that have begun are read
together. Rule 2: a prompt that is more urgent than every answer, or as urgent and one of those that read first, is read
before any of them goes on; those that read first have no more than a chunk. Rule 3: as urgent as one, a chunk of it comes
after each token of the answers. Rule 4: less urgent than one, it is read between their tokens for no longer than a token
takes. Rule 5: whatever is computed is put aside between two stages when somebody comes.
"""

import math
import time
from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from mlxsup.worker.engine.answers import Answers
from mlxsup.worker.engine.interface import IsWanted, Lease
from mlxsup.worker.engine.member import Choice, Member
from mlxsup.worker.engine.prompts import Prompts
from mlxsup.worker.engine.stages import STAGE_S, cache_arrays
from mlxsup.worker.engine.widths import Widths

# mlx-lm's own bound on prompts that are prefilled together.
_PREFILL_SEQUENCES_MAX = 8


class Batch:
    def __init__(
        self, model: nn.Module, *, sequences_max: int, chunk_tokens: int, widths: Widths | None = None
    ) -> None:
        self.sequences_max = sequences_max
        self.chunk_tokens = chunk_tokens
        self.lease: Lease | None = None
        self._model = model
        self._waiting: list[Member] = []
        self._prompts: dict[int, Prompts] = {}
        self._answers = Answers(model, widths or Widths())
        # Every answer has got a token since a prompt was read.
        self._told = False
        # Taken out, and perhaps not computed yet.
        self._unsettled: list[Member] = []

    def add(self, member: Member) -> None:
        # Answers pause for no more than a chunk.
        member.reads_first = member.reads_first and member.unread <= self.chunk_tokens
        self._waiting.append(member)
        self._waiting.sort(key=lambda waiting: waiting.turn)

    def remove(self, members: Sequence[Member], *, keeps_caches: bool = False) -> None:
        """They are taken out; `keeps_caches`: each with what has been computed of it, to be added again."""
        answering = [member for member in members if member in self._answers.members]
        if answering:
            self._answers.remove(answering, keeps_caches=keeps_caches)
        for member in members:
            prompts = self._prompts.get(member.turn)
            if member in self._waiting:
                self._waiting.remove(member)
            elif prompts is not None and member in prompts.members:
                prompts.remove(member, keeps_caches=keeps_caches)
        if keeps_caches:
            self._unsettled += members
        if self.lease is not None and self._next_turn() is None:
            self.lease.over()

    @property
    def prefill_tokens(self) -> int:
        """How many tokens of prompts the next step will compute, if nothing comes in between."""
        turn = self._reads_next()
        return self._tokens_of(turn) if turn is not None and self._is_allowed(turn) else 0

    def _tokens_of(self, turn: int) -> int:
        prompts = self._prompts.get(turn)
        if prompts is not None and prompts.is_put_aside:
            return prompts.tokens_put_aside
        read = [*(prompts.members if prompts is not None else ()), *self._newcomers(turn)]
        return sum(map(self._chunk, read))

    def _is_allowed(self, turn: int) -> bool:
        prompts = self._prompts.get(turn)
        has_begun = prompts is not None and prompts.is_put_aside
        return has_begun or self.lease is None or self.lease.allows(self._tokens_of(turn))

    def step(self, is_wanted: IsWanted) -> list[Choice] | None:
        """A chunk of prompts, or a token of each answer; None when it is put aside before its end."""
        self._go_on()
        turn = self._reads_next()
        if turn is not None and not self._is_allowed(turn):
            assert self.lease is not None
            self.lease.ask(self._tokens_of(turn), turn // 2)
            turn = None
        if turn is None:
            return self._tell(is_wanted)
        self._told = False
        if turn <= self._first_answer:
            return self._read(turn, is_wanted)
        until_s = time.monotonic() + max(self._answers.step_s, STAGE_S)
        return self._read(turn, lambda: is_wanted() or time.monotonic() >= until_s)

    def _tell(self, is_wanted: IsWanted) -> list[Choice] | None:
        choices = self._answers.step(is_wanted)
        if choices == [] and self._answers.members:
            # What was chosen had all been told.
            choices = self._answers.step(is_wanted)
        self._told = choices is not None
        if self._told:
            self._settle()
        return choices

    def _reads_next(self) -> int | None:
        """The turn of the prompts that are read next; None: the answers go on."""
        turn = self._next_turn()
        if turn is None or self._told or not self._answers.members:
            return turn
        return turn if turn < self._first_answer else None

    @property
    def _first_answer(self) -> float:
        return min((member.answer_turn for member in self._answers.members), default=math.inf)

    def _read(self, turn: int, is_wanted: IsWanted) -> list[Choice] | None:
        prompts = self._prompts.setdefault(turn, Prompts(self._model))
        # With one token a prompt has nothing to read before its answer.
        ready: list[Member] = []
        if not prompts.is_put_aside:
            newcomers = self._newcomers(turn)
            self._waiting = [member for member in self._waiting if member not in newcomers]
            ready = [member for member in newcomers if member.unread == 1]
            prompts.join([member for member in newcomers if member.unread > 1])
        if ready:
            return self._answers.start(ready)
        if not prompts.read(self.chunk_tokens, is_wanted):
            return None
        if self.lease is not None:
            self.lease.over()
        done = prompts.take_read()
        return self._answers.start(done) if done else []

    def _go_on(self) -> None:
        """Of whom the next token is known already, there is nothing to read."""
        for member in [waiting for waiting in self._waiting if waiting.chosen is not None][: self._room]:
            self._waiting.remove(member)
            self._answers.go_on(member)

    def _next_turn(self) -> int | None:
        """Of the prompts that are read next."""
        found = [turn for turn, prompts in self._prompts.items() if prompts.members]
        if self._room > 0:
            found += [member.turn for member in self._waiting if member.chosen is None][:1]
        return min(found, default=None)

    @property
    def _room(self) -> int:
        begun = sum(len(prompts.members) for prompts in self._prompts.values())
        return self.sequences_max - begun - len(self._answers.members)

    def _newcomers(self, turn: int) -> list[Member]:
        """Who begins with the next chunk. Those that begin share one, so that the first of them has its text soon.
        Beside a prompt of several chunks as many as may be begin, or it would keep them away.
        """
        prompts = self._prompts.get(turn)
        begun = len(prompts.members) if prompts is not None else 0
        bound = max(0, min(self._room, _PREFILL_SEQUENCES_MAX - begun))
        waiting = [member for member in self._waiting if member.turn == turn and member.chosen is None][
            :bound
        ]
        if begun:
            return waiting
        together = waiting[:1]
        for member in waiting[1:]:
            # The shorter ones of a batch are padded.
            longest = max(map(self._chunk, [*together, member]))
            if longest * (len(together) + 1) > self.chunk_tokens:
                break
            together.append(member)
        return together

    def _chunk(self, member: Member) -> int:
        return min(self.chunk_tokens, member.unread)

    def _settle(self) -> None:
        """What was taken out holds on to all that it was taken from until it is computed."""
        for member in self._unsettled:
            if member.caches:
                mx.eval(cache_arrays(member.caches), member.chosen)
        self._unsettled.clear()
