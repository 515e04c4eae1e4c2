"""Batches of a self-test's own, around the model that serves."""

from collections.abc import Callable, Generator, Sequence

import mlx.core as mx
import mlx.nn as nn
import msgspec

from mlxsup.worker.engine.adapters.linear import Routes
from mlxsup.worker.engine.batch import Batch
from mlxsup.worker.engine.forward import Forward
from mlxsup.worker.engine.interface import IsWanted
from mlxsup.worker.engine.member import Choice, Member
from mlxsup.worker.engine.picking import Spot, pick
from mlxsup.worker.engine.prefixes.caches import is_cuttable
from mlxsup.worker.engine.prefixes.prefixes import Prefixes
from mlxsup.worker.engine.quantised import CacheMaker
from mlxsup.worker.engine.sampling import greedy
from mlxsup.worker.engine.selftest.compare import Trace
from mlxsup.worker.engine.selftest.golden import Golden
from mlxsup.worker.engine.widths import TOKENS_MAX, Ahead, Guesser, Record, Widths

_URGENCY = 2
# Far more than the prompts take.
_PREFIX_BYTES_MAX = 1 << 30
_CHUNK_TOKENS = 2048
# Of guesses each so many-th is wrong.
_WRONG_ONE_IN = 3


class Rig(msgspec.Struct, frozen=True, eq=False):
    """What a self-test needs of an engine. `guesser` makes such as requests have, None: they have none.

    `keeps_prefixes`: what is computed of beginnings is kept for others. Differences of less than `tolerance` may be rounding.
    """

    model: nn.Module
    routes: Routes
    maker: CacheMaker
    prompts: list[Golden]
    vocabulary_tokens: int
    bytes_per_token: int
    sequences_max: int
    keeps_prefixes: bool
    guesser: Callable[[], Guesser | None]
    tolerance: float

    def batch(self, rows: int, *, prefixes: Prefixes | None = None, widths: Widths | None = None) -> Batch:
        return Batch(
            self.model,
            sequences_max=rows,
            chunk_tokens=_CHUNK_TOKENS,
            prefixes=prefixes,
            widths=widths,
            routes=self.routes,
        )

    def prefixes(self) -> Prefixes:
        """Empty ones, in memory."""
        return Prefixes(
            is_cuttable=is_cuttable(self.model),
            bytes_max=_PREFIX_BYTES_MAX,
            bytes_per_token=self.bytes_per_token,
        )

    def member(
        self,
        number: int,
        *,
        guesser: Guesser | None = None,
        cache_key: str | None = None,
        again: bool = False,
    ) -> Member:
        """For that prompt; `again`: beside the first one."""
        prompt = self.prompts[number]
        return Member(
            id=number + len(self.prompts) * again,
            urgency=_URGENCY,
            tokens=list(prompt.tokens),
            prompt_tokens=len(prompt.tokens),
            tokens_max=len(prompt.tokens) + prompt.answer_tokens,
            sampler=greedy,
            processors=[],
            guesser=guesser,
            logprobs=2,
            cache_key=cache_key,
            caches=self.maker.make(),
        )

    def knowing(self, number: int, answer: Sequence[int]) -> "Knowing":
        return Knowing([*self.prompts[number].tokens, *answer], self.vocabulary_tokens)


def say_plainly(rig: Rig, number: int) -> Generator[None, None, Trace]:
    """What that prompt is answered by the model and its own caches alone, a pass at a time."""
    member, trace = rig.member(number), Trace()
    forward = Forward(rig.model, rig.routes)
    unread = member.tokens
    while len(trace.tokens) < _answer_tokens(member):
        logits = forward([member], mx.array([unread]), member.caches)[:, -1]
        member.cached += len(unread)
        picks, (chances,) = pick([Spot(member)], logits)
        token = picks.item()
        assert isinstance(token, int)
        _note(trace, Choice(member.id, token, chances))
        unread = [token]
        yield
    return trace


def say(
    batch: Batch, members: Sequence[Member], is_wanted: IsWanted, *, late: int = 0
) -> Generator[None, None, list[Trace]]:
    """What each answers, in their order, a step of the batch at a time; so many of the last ones come `late`.

    Raises ValueError if the batch says nothing.
    """
    traces = {member.id: Trace() for member in members}
    coming = list(members[len(members) - late :])
    running = list(members[: len(members) - late])
    for member in running:
        batch.add(member)
    steps_left = sum(member.tokens_max for member in members) + 2 * len(members)
    while running:
        choices = batch.step(is_wanted)
        if choices is not None:
            steps_left -= 1
        for choice in choices or ():
            _note(traces[choice.id], choice)
        ended = [member for member in running if len(traces[member.id].tokens) >= _answer_tokens(member)]
        batch.remove(ended)
        running = [member for member in running if member not in ended]
        if choices:
            for member in coming:
                batch.add(member)
            running += coming
            coming = []
        if steps_left < 0:
            raise ValueError("the batch says nothing")
        yield
    return [
        Trace(trace.tokens[:count], trace.leads[:count])
        for member in members
        for trace, count in ((traces[member.id], _answer_tokens(member)),)
    ]


def _answer_tokens(member: Member) -> int:
    return member.tokens_max - member.prompt_tokens


def _note(trace: Trace, choice: Choice) -> None:
    assert choice.chances is not None
    likeliest: list[float] = choice.chances.top.tolist()  # type: ignore[assignment]
    trace.tokens.append(choice.token)
    trace.leads.append(likeliest[0] - likeliest[1])


class Eager(Widths):
    """Whatever is guessed is fed, as if it always paid."""

    def choose(self, aheads: Sequence[Ahead | None]) -> int:
        return min(TOKENS_MAX, max((ahead.longest for ahead in aheads if ahead is not None), default=0))


class _Trusted(Record):
    """Guesses are asked for however they went."""

    def learn(self, guessed: int, proved: int) -> None:
        pass


class Knowing:
    """Knows the text, and is wrong at some of its places."""

    token_s = 0.0

    def __init__(self, text: list[int], vocabulary_tokens: int) -> None:
        self.record: Record = _Trusted()
        self.guessed = 0
        self._text = text
        self._vocabulary_tokens = vocabulary_tokens

    def may_follow(self, tokens: list[int]) -> int:
        return min(TOKENS_MAX, max(0, len(self._text) - len(tokens)))

    def guess(self, tokens: list[int], count: int) -> list[int]:
        begin = len(tokens)
        guesses = [
            (token + (at % _WRONG_ONE_IN == 0)) % self._vocabulary_tokens
            for at, token in enumerate(self._text[begin : begin + count], begin)
        ]
        self.guessed += len(guesses)
        return guesses
