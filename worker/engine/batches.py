"""Prompts that are read together, and answers that are computed together, over the batched caches of mlx-lm.

mlx-lm's own BatchGenerator decodes before all else, and computes what it has begun to its end. Here the caller decides
who is next, between any two stages of a pass. The numbers are the same.
"""

import time
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import msgspec
from mlx_lm.models.cache import TokenBuffer

from mlxsup.worker.engine.interface import IsWanted
from mlxsup.worker.engine.sampling import LogitsProcessor, Sampler
from mlxsup.worker.engine.stages import Stages, cache_arrays, cache_marks

Caches = list[Any]
"""One for each layer, of one sequence or of a batch."""

_SMOOTHING = 0.3


class Member(msgspec.Struct, eq=False, kw_only=True):
    """One sequence. Of `tokens`, its prompt and what it was given since, the first `cached` are in the cache.

    Whoever `reads_first` has its prompt read before answers that are as urgent go on.

    `caches` are its own while it is in no batch. `chosen`, of shape [1], is the token behind `tokens` if that is known
    and not told yet.
    """

    id: int
    urgency: int
    reads_first: bool = False
    tokens: list[int]
    sampler: Sampler
    processors: list[LogitsProcessor]
    cached: int = 0
    caches: Caches
    chosen: mx.array | None = None
    context: TokenBuffer | None = None

    @property
    def unread(self) -> int:
        return len(self.tokens) - self.cached

    @property
    def turn(self) -> int:
        """Lower ones go first, when it is read."""
        return 2 * self.urgency + (not self.reads_first)

    @property
    def answer_turn(self) -> int:
        return 2 * self.urgency + 1


class Choice(msgspec.Struct, frozen=True):
    id: int
    token: int


class Prompts:
    """Of one turn. Each member has more than one token to read: the last one gives the first of the answer."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.members: list[Member] = []
        self._caches: Caches = []
        # Of the pass that is being computed: the tokens of each member, and the time that was spent on it.
        self._reads: list[int] = []
        self._stages = Stages()
        self._spent_s = 0.0
        self.seconds_per_token = 0.0

    @property
    def is_put_aside(self) -> bool:
        return bool(self._reads)

    @property
    def tokens_put_aside(self) -> int:
        return sum(self._reads)

    def join(self, members: list[Member]) -> None:
        if members:
            self._caches = _extended(self._caches, _merged(members))
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
            self.seconds_per_token = _smoothed(self.seconds_per_token, self._spent_s / computed)
            self._spent_s = 0.0
            for member, tokens in zip(self.members, self._reads, strict=True):
                member.cached += tokens
            self._reads = []
        else:
            self._spent_s += time.monotonic() - began_s
        return over

    def _build(self, chunk_tokens: int) -> None:
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
        self._model(mx.array(rows), cache=self._caches)
        if padded:
            for cache in self._caches:
                cache.finalize()
        computed = longest * len(rows)
        self._stages = Stages(cache_marks(self._caches, self.seconds_per_token * computed))

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
        _filter(self._caches, rows)
        if not rows:
            self._stages = Stages()
            self._spent_s = 0.0


class Answers:
    """Each step gives each member a token. One pass is always built ahead of what has been told."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.members: list[Member] = []
        self._caches: Caches = []
        # Of shape [members]: chosen by the last pass, and not yet in the caches.
        self._chosen: mx.array | None = None
        # Whose was told as soon as it was chosen.
        self._told: set[int] = set()
        self._stages = Stages()
        self._asked_for = False
        self.step_s = 0.0

    def start(self, members: list[Member]) -> list[Choice]:
        """Read the last token of their prompts, and tell the first of their answers."""
        for member in members:
            member.context = TokenBuffer(member.tokens[:-1]) if member.processors else None
        caches = _merged(members)
        last = mx.array([member.tokens[-1] for member in members])
        chosen = self._pass(members, caches, last)
        tokens: list[int] = chosen.tolist()  # type: ignore[assignment]
        for member, token in zip(members, tokens, strict=True):
            member.cached = len(member.tokens)
            member.tokens.append(token)
            self._told.add(member.id)
        self._join(members, caches, chosen)
        return [Choice(member.id, token) for member, token in zip(members, tokens, strict=True)]

    def go_on(self, member: Member) -> None:
        """It was taken out with its caches and the token that was chosen behind them."""
        assert member.chosen is not None
        chosen, member.chosen = member.chosen, None
        member.context = TokenBuffer(member.tokens) if member.processors else None
        self._join([member], _merged([member]), chosen)

    def _join(self, members: list[Member], caches: Caches, chosen: mx.array) -> None:
        self._caches = _extended(self._caches, caches)
        self._chosen = chosen if self._chosen is None else mx.concatenate([self._chosen, chosen])
        self._asked_for = False
        self.members += members
        for member in members:
            member.caches = []

    def step(self, is_wanted: IsWanted) -> list[Choice] | None:
        """What the last pass chose, with the next one under way; None when it is put aside before its end."""
        if self._chosen is None:
            return []
        began_s = time.monotonic()
        if not self._stages.run(is_wanted):
            return None
        self._ask_for_chosen()
        chosen = self._chosen
        self._chosen = self._pass(self.members, self._caches, chosen)
        self._asked_for = False
        marks = cache_marks(self._caches, self.step_s)
        self._stages = Stages(marks)
        if marks:
            self._stages.begin()
        else:
            self._ask_for_chosen()
        tokens: list[int] = chosen.tolist()  # type: ignore[assignment]
        choices = []
        for member, token in zip(self.members, tokens, strict=True):
            if member.id not in self._told:
                member.tokens.append(token)
                choices.append(Choice(member.id, token))
            member.cached = len(member.tokens)
        self._told.clear()
        self.step_s = _smoothed(self.step_s, time.monotonic() - began_s)
        return choices

    def remove(self, members: Sequence[Member], *, keeps_caches: bool) -> None:
        """They are taken out; `keeps_caches`: to go on later from where they are."""
        out = set(map(id, members))
        rows = [at for at, member in enumerate(self.members) if id(member) not in out]
        assert self._chosen is not None
        if keeps_caches:
            for at, member in enumerate(self.members):
                if id(member) in out:
                    member.caches = [cache.extract(at) for cache in self._caches]
                    # Of one that was told already the caches have nothing yet: it is read again as a prompt is.
                    member.chosen = None if member.id in self._told else self._chosen[at : at + 1]
        self._told.difference_update(member.id for member in members)
        self.members = [self.members[at] for at in rows]
        _filter(self._caches, rows)
        if rows:
            self._chosen = self._chosen[mx.array(rows)]
            self._asked_for = False
        else:
            self._chosen = None
            self._stages = Stages()

    def _ask_for_chosen(self) -> None:
        if not self._asked_for:
            self._asked_for = True
            mx.async_eval(self._chosen, [m.context.state for m in self.members if m.context])

    def _pass(self, members: list[Member], caches: Caches, inputs: mx.array) -> mx.array:
        """Built, not computed: from the last token of each [members] the next one [members]."""
        logits = self._model(inputs[:, None], cache=caches)[:, -1, :]
        if any(member.processors for member in members):
            rows = []
            for at, member in enumerate(members):
                row = logits[at : at + 1]
                if member.context is not None:
                    context = member.context.update_and_fetch(inputs[at : at + 1])
                    for process in member.processors:
                        row = process(context, row)
                rows.append(row)
            logits = mx.concatenate(rows, axis=0)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        sampler = members[0].sampler
        if all(member.sampler is sampler for member in members):
            return sampler(logprobs)
        return mx.concatenate(
            [member.sampler(logprobs[at : at + 1]) for at, member in enumerate(members)], axis=0
        )


def _merged(members: list[Member]) -> Caches:
    return [type(layer[0]).merge(list(layer)) for layer in zip(*(m.caches for m in members), strict=True)]


def _extended(caches: Caches, others: Caches) -> Caches:
    if not caches:
        return others
    for cache, other in zip(caches, others, strict=True):
        cache.extend(other)
    return caches


def _filter(caches: Caches, rows: list[int]) -> None:
    if rows:
        for cache in caches:
            cache.filter(rows)
    else:
        caches.clear()


def _smoothed(before: float, now: float) -> float:
    return now if not before else before + _SMOOTHING * (now - before)
