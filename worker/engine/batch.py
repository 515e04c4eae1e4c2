"""Which of one worker's sequences is computed next: prompts by urgency and length, answers all together.

Rule 1: which prompt is read next is said in `reading`. Rule 2: a prompt that is more urgent than every answer, or as urgent
and one of those that read first, is read before any of them goes on; those that read first have no more than a chunk.
Rule 3: as urgent as one, a chunk of it comes after each token of the answers, and is put aside when they would pause for
longer than is aimed at. Rule 4: less urgent than one, it is read between their tokens for no longer than a token takes.
Rule 5: whatever is computed is put aside between two stages when somebody comes. Rule 6: of those that begin alike one reads
the beginning; when it is taken out, another one goes on from what it has read.
"""

import math
import time
from collections.abc import Sequence
from functools import partial

import mlx.core as mx
import mlx.nn as nn

from mlxsup.worker.engine.adapters.linear import Routes
from mlxsup.worker.engine.answers import Answers
from mlxsup.worker.engine.forward import Forward
from mlxsup.worker.engine.interface import IsWanted, Lease
from mlxsup.worker.engine.member import Choice, Member
from mlxsup.worker.engine.pace import Pace
from mlxsup.worker.engine.prefixes.prefixes import Prefixes
from mlxsup.worker.engine.prompts import Prompts
from mlxsup.worker.engine.reading import Next, Reading
from mlxsup.worker.engine.sharing import Sharing
from mlxsup.worker.engine.stages import STAGE_S, cache_arrays
from mlxsup.worker.engine.widths import Widths

# Where nobody waits for a token chunks are so much longer: who comes is read before their end all the same.
_UNWATCHED = 2


class Batch:
    """Chunks of prompts have at most `chunk_tokens`, and take about `target_s`. With less `chunk_tokens` than in the beginning
    they take as much less time.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        sequences_max: int,
        chunk_tokens: int,
        target_s: float = math.inf,
        pace: Pace | None = None,
        prefixes: Prefixes | None = None,
        widths: Widths | None = None,
        routes: Routes | None = None,
    ) -> None:
        self.sequences_max = sequences_max
        self.chunk_tokens = self._chunk_tokens_usual = chunk_tokens
        self.lease: Lease | None = None
        self._target_s = target_s
        self._prefixes = prefixes or Prefixes(is_cuttable=True, bytes_max=0, bytes_per_token=1)
        self._sharing = Sharing(self._prefixes.tokens_max, is_cuttable=self._prefixes.is_cuttable)
        self._pace = pace or Pace()
        forward = Forward(model, routes or Routes())
        self._reading = Reading(forward, self._pace, self._sharing)
        self._answers = Answers(forward, widths or Widths())
        # Every answer has got a token since a prompt was read.
        self._told = False
        # Their prompts are read but for the last token, and answers that would pause too long have a token before they begin.
        self._ready: list[Member] = []
        # Taken out, and perhaps not computed yet.
        self._unsettled: list[Member] = []

    def add(self, member: Member) -> None:
        self._prefixes.take(member)
        # Answers pause for no more than a chunk.
        member.reads_first = member.reads_first and member.unread <= self._chunk
        self._reading.add(member)
        self._follow(member)
        for waiting in self._reading.waiting:
            # The more urgent one may lead those that came before.
            if waiting.turn > member.turn:
                self._follow(waiting)

    def remove(self, members: Sequence[Member], *, keeps_caches: bool = False) -> None:
        """They are taken out; `keeps_caches`: each with what has been computed of it, to be added again."""
        answering = [member for member in members if member in self._answers.members]
        if answering:
            if not keeps_caches:
                for member in answering:
                    self._prefixes.offer(member, member.cached, partial(self._answers.place_of, member))
            self._answers.remove(answering, keeps_caches=keeps_caches)
        for member in members:
            prompts = self._reading.prompts_of(member)
            if member in self._reading.waiting:
                self._reading.waiting.remove(member)
            elif member in self._ready:
                self._ready.remove(member)
            elif prompts is not None:
                self._offer_read(prompts, member)
                prompts.remove(member, keeps_caches=keeps_caches)
            self._pass_on(self._sharing.leave(member))
        self._reading.clear()
        if keeps_caches:
            self._unsettled += members
        if self.lease is not None and self._reads_any() is None:
            self.lease.over()

    @property
    def prefill_tokens(self) -> int:
        """How many tokens of prompts the next step will compute, if nothing comes in between."""
        if self._begins_next:
            return len(self._ready)
        chosen = self._reads_next()
        return self._tokens_of(chosen) if chosen is not None and self._is_allowed(chosen) else 0

    @property
    def _chunk(self) -> int:
        """Tokens of a chunk, by what was measured."""
        return self._pace.tokens_in(self._chunk_s, self.chunk_tokens)

    @property
    def _chunk_s(self) -> float:
        """What else makes answers pause is their own token, behind the stages of the chunk that are under way."""
        target_s = self._target_s * self.chunk_tokens / self._chunk_tokens_usual
        if not self._answers.members:
            return _UNWATCHED * target_s
        return max(target_s - self._answers.step_s - 2 * STAGE_S, target_s / 2)

    @property
    def _begins_next(self) -> bool:
        return bool(self._ready) and (self._told or not self._answers.members)

    def _tokens_of(self, chosen: Next) -> int:
        return chosen.tokens(self._chunk)

    def _is_allowed(self, chosen: Next) -> bool:
        return chosen.has_begun_a_pass or self.lease is None or self.lease.allows(self._tokens_of(chosen))

    def step(self, is_wanted: IsWanted) -> list[Choice] | None:
        """A chunk of prompts, or a token of each answer; None when it is put aside before its end."""
        self._go_on()
        if self._begins_next:
            ready, self._ready, self._told = self._ready, [], False
            return self._answers.start(ready)
        chosen = self._reads_next()
        if chosen is not None and not self._is_allowed(chosen):
            assert self.lease is not None
            self.lease.ask(self._tokens_of(chosen), chosen.turn // 2)
            chosen = None
        if chosen is None:
            return self._tell(is_wanted)
        self._told = False
        until_s = time.monotonic() + self._pause_s(chosen.turn)
        done = self._read(chosen, lambda: is_wanted() or time.monotonic() >= until_s)
        if done and time.monotonic() + self._answers.step_s > until_s:
            self._ready += done
            return []
        if done:
            return self._answers.start(done)
        return None if done is None else []

    def rest(self, is_wanted: IsWanted) -> None:
        """There is nothing to compute."""
        self._prefixes.rest(is_wanted)

    def _pause_s(self, turn: int) -> float:
        """So long answers wait for a chunk of that turn."""
        if turn < self._first_answer:
            return math.inf
        return self._chunk_s if turn == self._first_answer else max(self._answers.step_s, STAGE_S)

    def _tell(self, is_wanted: IsWanted) -> list[Choice] | None:
        choices = self._answers.step(is_wanted)
        if choices == [] and self._answers.members:
            # What was chosen had all been told.
            choices = self._answers.step(is_wanted)
        self._told = choices is not None
        if self._told:
            self._settle()
            self._prefixes.settle()
        return choices

    def _reads_next(self) -> Next | None:
        """Prompts that are read next; None: the answers go on."""
        chosen = self._reads_any()
        if chosen is None or self._told or not self._answers.members:
            return chosen
        return chosen if chosen.turn < self._first_answer else None

    def _reads_any(self) -> Next | None:
        return self._reading.next(self._room, self._chunk)

    @property
    def _first_answer(self) -> float:
        return min((member.answer_turn for member in self._answers.members), default=math.inf)

    def _read(self, chosen: Next, is_wanted: IsWanted) -> list[Member] | None:
        """Whose answers may begin; None when it is put aside before its end."""
        for member in chosen.newcomers:
            # More may have been kept since it came.
            self._prefixes.take(member)
        prompts = self._reading.begin(chosen)
        # With one token a prompt has nothing to read before its answer.
        ready = [member for member in chosen.newcomers if member.unread == 1]
        if ready:
            self._reading.clear()
            return ready
        if not prompts.read(self._chunk_for(prompts), is_wanted):
            return None
        if self.lease is not None:
            self.lease.over()
        for member in list(prompts.members):
            self._hand_on(prompts, member)
        done = prompts.take_read()
        self._reading.clear()
        self._prefixes.settle()
        return done

    def _chunk_for(self, prompts: Prompts) -> int:
        """As long as may be, or up to where another one goes on, where it can't go on from any other place."""
        if self._prefixes.is_cuttable:
            return self._chunk
        steps = [
            tokens - leader.cached
            for leader in prompts.members
            for tokens in self._sharing.awaited(leader)
            if tokens > leader.cached
        ]
        return min([self._chunk, *steps])

    def _follow(self, member: Member) -> None:
        """It waits for somebody that reads what it begins with, or will read it first."""
        if member in self._sharing or member.chosen is not None:
            return
        begun = [other for other in self._reading.begun if other.turn <= member.turn]
        ahead = self._reading.waiting[: self._reading.waiting.index(member)]
        leaders = begun + [other for other in ahead if other not in self._sharing]
        wait = self._sharing.follow(member, leaders)
        prompts = None if wait is None else self._reading.prompts_of(wait.leader)
        if wait is not None and prompts is not None and not prompts.is_put_aside and wait.is_over:
            # There is nothing to wait for; and where there is no room to hand it on, there will be none.
            self._prefixes.offer(wait.leader, wait.leader.cached, partial(prompts.place_of, wait.leader))
            self._sharing.stop(member)
            self._prefixes.take(member)

    def _hand_on(self, prompts: Prompts, member: Member) -> None:
        """What it has read, to those that wait for it, and to who comes later."""
        served = self._sharing.served(member)
        is_over = member.unread == 1
        if served or is_over:
            self._prefixes.offer(member, member.cached, partial(prompts.place_of, member))
        self._pass_on(served + (self._sharing.leave(member) if is_over else []))

    def _offer_read(self, prompts: Prompts, member: Member) -> None:
        """It is about to be taken out: who comes with the same does not begin again, if that is no more to compute now."""
        if not prompts.is_put_aside or self._sharing.awaited(member):
            self._prefixes.offer(member, prompts.cached_then(member), partial(prompts.place_of, member))

    def _pass_on(self, members: list[Member]) -> None:
        """They wait no longer, but for each other."""
        for member in members:
            self._prefixes.take(member)
        for member in members:
            self._follow(member)

    def _go_on(self) -> None:
        """Of whom the next token is known already, there is nothing to read."""
        for member in [waiting for waiting in self._reading.waiting if waiting.chosen is not None][
            : self._room
        ]:
            self._reading.waiting.remove(member)
            self._answers.go_on(member)

    @property
    def _room(self) -> int:
        begun = len(self._reading.begun) + len(self._ready)
        return self.sequences_max - begun - len(self._answers.members)

    def _settle(self) -> None:
        """What was taken out holds on to all that it was taken from until it is computed."""
        for member in self._unsettled:
            if member.caches:
                mx.eval(cache_arrays(member.caches), member.chosen)
        self._unsettled.clear()
