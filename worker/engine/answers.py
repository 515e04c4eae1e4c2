"""Answers that are computed together, a token of each at a time.

mlx-lm's own BatchGenerator computes what it has begun to its end. Here anybody can be taken out between two steps, and go
on later. The numbers are the same.
"""

import time
from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import TokenBuffer

from mlxsup.worker.engine.caches import extended, keep_rows, merged
from mlxsup.worker.engine.interface import IsWanted
from mlxsup.worker.engine.member import Caches, Choice, Member
from mlxsup.worker.engine.stages import Stages, cache_marks, smoothed


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
        caches = merged(members)
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
        self._join([member], merged([member]), chosen)

    def _join(self, members: list[Member], caches: Caches, chosen: mx.array) -> None:
        self._caches = extended(self._caches, caches)
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
        self.step_s = smoothed(self.step_s, time.monotonic() - began_s)
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
        keep_rows(self._caches, rows)
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
