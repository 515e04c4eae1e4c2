"""Answers that are computed together, a token of each at a time, or several where they are known or guessed.

mlx-lm's own BatchGenerator computes what it has begun to its end. Here anybody can be taken out between two steps, and go
on later. The numbers are the same.

Rule 1: a pass is always under way ahead of what has been told; its next one is built before its tokens are looked at,
unless they decide what is fed. Rule 2: tokens that must come next are told with the one before them, and fed with it if that
pays. Rule 3: guessed tokens are fed behind the last one if that pays; each is told once the model has chosen it itself, and
with the first one that it has not, all behind it leave the caches again.
"""

import time
from collections.abc import Sequence

import mlx.core as mx
import msgspec
from mlx_lm.models.cache import BatchKVCache

from mlxsup.protocol.errors import RpcError
from mlxsup.worker.engine.caches import extended, keep_rows, merged, shift_out
from mlxsup.worker.engine.forward import Forward
from mlxsup.worker.engine.interface import IsWanted
from mlxsup.worker.engine.member import Caches, Chances, Choice, Member
from mlxsup.worker.engine.picking import Spot, pick
from mlxsup.worker.engine.quantised import QuantisedCache
from mlxsup.worker.engine.smoothing import smoothed
from mlxsup.worker.engine.stages import Stages, cache_marks
from mlxsup.worker.engine.widths import Ahead, Widths


class _Row(msgspec.Struct):
    """What a pass does for one member: a pick behind its last token, and one behind each that is guessed to follow.

    `slack` columns of the pass are behind all these. `told`: its pick is told already.
    """

    guessed: list[int] = []
    slack: int = 0
    told: bool = False

    @property
    def picks(self) -> int:
        return 1 + len(self.guessed)

    def proved(self, picks: Sequence[int]) -> int:
        """So many guesses in a row are what was picked."""
        for number, token in enumerate(self.guessed):
            if token != picks[number]:
                return number
        return len(self.guessed)


class _Flight(msgspec.Struct):
    """A pass that is under way, with a row for each member; `picks` and `chances` are those of all rows, one behind the other.

    `is_whole`: since it began nobody has come and nobody has left.
    """

    rows: list[_Row]
    picks: mx.array
    chances: list[Chances | None]
    columns: int = 1
    is_whole: bool = True
    asked_for: bool = False

    def ask(self) -> None:
        if not self.asked_for:
            self.asked_for = True
            told_of = [(chance.chosen, chance.top_tokens, chance.top) for chance in self.chances if chance]
            mx.async_eval(self.picks, told_of)

    def first(self, at: int) -> tuple[mx.array, Chances | None]:
        """The pick behind the last token that is certain."""
        place = self._place(at)
        return self.picks[place : place + 1], self.chances[place]

    def keep(self, kept: list[int]) -> None:
        places = [place for at in kept for place in range(self._place(at), self._place(at + 1))]
        self.picks = self.picks[mx.array(places)]
        self.chances = [self.chances[place] for place in places]
        self.rows = [self.rows[at] for at in kept]
        self._changed()

    def extend(self, other: "_Flight") -> None:
        self.picks = mx.concatenate([self.picks, other.picks])
        self.chances = self.chances + other.chances
        self.rows = self.rows + other.rows
        self._changed()

    def _place(self, at: int) -> int:
        return sum(row.picks for row in self.rows[:at])

    def _changed(self) -> None:
        self.is_whole = self.asked_for = False


class Answers:
    """Each step gives each member a token at least."""

    def __init__(self, forward: Forward, widths: Widths) -> None:
        self._forward = forward
        self._widths = widths
        self.members: list[Member] = []
        self._caches: Caches = []
        self._flight: _Flight | None = None
        self._stages = Stages()
        self._is_staged = False
        # On the pass that is under way.
        self._spent_s = 0.0
        # The next tokens may be known, or guessed, and to feed several at once pays.
        self._feeds_ahead = False
        self.step_s = 0.0

    def start(self, members: list[Member]) -> list[Choice]:
        """Read the last token of their prompts, and tell the first of their answers."""
        caches = merged(members)
        last = mx.array([[member.tokens[-1]] for member in members])
        logits = self._forward(members, last, caches)[:, -1, :]
        picks, chances = pick([Spot(member) for member in members], logits)
        for member in members:
            member.cached = len(member.tokens)
        flight = _Flight([_Row(told=True) for _ in members], picks, chances, is_whole=False)
        choices = [
            _told(member, token, chance)
            for member, token, chance in zip(members, _as_ints(picks), chances, strict=True)
        ]
        self._join(members, caches, flight)
        return choices

    def go_on(self, member: Member) -> None:
        """It was taken out with its caches and the token that was chosen behind them."""
        assert member.chosen is not None
        flight = _Flight([_Row()], member.chosen, [member.chances], is_whole=False)
        member.chosen, member.chances = None, None
        self._join([member], merged([member]), flight)

    def _join(self, members: list[Member], caches: Caches, flight: _Flight) -> None:
        self._caches = extended(self._caches, caches)
        if self._flight is None:
            self._flight = flight
        else:
            self._flight.extend(flight)
        self.members += members
        for member in members:
            member.caches = []

    def step(self, is_wanted: IsWanted) -> list[Choice] | None:
        """What the last pass chose, with the next one under way; None when it is put aside before its end."""
        flight = self._flight
        if flight is None:
            return []
        began_s = time.monotonic()
        if not self._stages.run(is_wanted):
            self._spent_s += time.monotonic() - began_s
            return None
        flight.ask()
        if flight.columns > 1 or self._feeds_ahead:
            choices = self._tell(flight)
            self._note_time(flight, began_s)
            self._flight = self._fly_wide(choices)
        else:
            logits = self._pass(flight.picks[:, None])
            choices = self._tell(flight)
            self._note_time(flight, began_s)
            picks, chances = pick([Spot(member) for member in self.members], logits[:, -1, :])
            self._flight = _Flight([_Row() for _ in self.members], picks, chances)
        for member in self.members:
            member.cached = len(member.tokens)
        if not self._is_staged:
            self._flight.ask()
        self._feeds_ahead = self._widths.choose(self._aheads()) > 0
        return choices

    def _pass(self, inputs: mx.array) -> mx.array:
        """Logits [members, columns, vocabulary], under way, of inputs [members, columns]."""
        logits = self._forward(self.members, inputs, self._caches)
        marks = cache_marks(self._caches, self.step_s)
        self._is_staged = bool(marks)
        self._stages = Stages(marks)
        self._stages.begin()
        if not marks:
            mx.async_eval(logits)
        return logits

    def _tell(self, flight: _Flight) -> list[Choice]:
        """What the pass chose; guesses that proved wrong leave the caches."""
        picks = _as_ints(flight.picks)
        choices: list[Choice] = []
        left_over = []
        at = 0
        for member, row in zip(self.members, flight.rows, strict=True):
            right = row.proved(picks[at:])
            if not row.told:
                choices += [
                    _told(member, picks[at + number], flight.chances[at + number])
                    for number in range(right + 1)
                ]
            if member.guesser is not None:
                member.guesser.record.learn(len(row.guessed), right)
            left_over.append(row.slack + len(row.guessed) - right)
            at += row.picks
        shift_out(self._caches, left_over)
        return choices

    def _fly_wide(self, choices: list[Choice]) -> _Flight:
        """A pass over the last token of each and what is fed behind it; what is certain of that is told at once."""
        aheads = self._aheads()
        count = self._widths.choose(aheads)
        rows: list[_Row] = []
        inputs: list[list[int]] = []
        spots: list[Spot] = []
        places: list[tuple[int, int]] = []
        for member, ahead in zip(self.members, aheads, strict=True):
            fed = _fed(member, ahead, count)
            fed_from = len(member.tokens) - 1
            row = _Row()
            if ahead is not None and ahead.right is None:
                choices += [_told(member, token, None) for token in fed]
                spots.append(Spot(member))
                places.append((len(inputs), len(fed)))
            else:
                row.guessed = fed
                spots += [Spot(member, fed[:number]) for number in range(len(fed) + 1)]
                places += [(len(inputs), number) for number in range(len(fed) + 1)]
            inputs.append([member.tokens[fed_from], *fed])
            rows.append(row)
        columns = max(map(len, inputs))
        for row, tokens in zip(rows, inputs, strict=True):
            row.slack = columns - len(tokens)
        padded = [tokens + [0] * row.slack for row, tokens in zip(rows, inputs, strict=True)]
        logits = self._pass(mx.array(padded))
        chosen_at = mx.array(places)
        picks, chances = pick(spots, logits[chosen_at[:, 0], chosen_at[:, 1]])
        return _Flight(rows, picks, chances, columns)

    def _aheads(self) -> list[Ahead | None]:
        """What could be fed behind the last token that was told of each."""
        if not all(isinstance(cache, BatchKVCache | QuantisedCache) for cache in self._caches):
            # From the others nothing can be taken back.
            return [None] * len(self.members)
        return [_ahead(member) for member in self.members]

    def _note_time(self, flight: _Flight, began_s: float) -> None:
        now_s = time.monotonic()
        self._spent_s += now_s - began_s
        self.step_s = smoothed(self.step_s, self._spent_s)
        if flight.is_whole:
            self._widths.learn(len(flight.rows), flight.columns, self._spent_s)
        self._spent_s = 0.0

    def place_of(self, member: Member) -> tuple[Caches, int]:
        """The caches of all of them, and its row."""
        return self._caches, self.members.index(member)

    def caches_of(self, member: Member) -> Caches:
        """A copy of what is computed of it, all that was told."""
        assert self._flight is not None
        at = self.members.index(member)
        row = self._flight.rows[at]
        caches = [cache.extract(at) for cache in self._caches]
        unsure = row.slack + len(row.guessed)
        if unsure:
            for cache in caches:
                cache.trim(unsure)
        return caches

    def remove(self, members: Sequence[Member], *, keeps_caches: bool) -> None:
        """They are taken out; `keeps_caches`: to go on later from where they are."""
        flight = self._flight
        assert flight is not None
        out = set(map(id, members))
        kept = [at for at, member in enumerate(self.members) if id(member) not in out]
        if keeps_caches:
            for at, member in enumerate(self.members):
                if id(member) in out:
                    member.caches = self.caches_of(member)
                    # Of one that was told already the caches have nothing yet: it is read again as a prompt is.
                    if not flight.rows[at].told:
                        member.chosen, member.chances = flight.first(at)
        self.members = [self.members[at] for at in kept]
        keep_rows(self._caches, kept)
        if kept:
            flight.keep(kept)
        else:
            self._flight = None
            self._stages = Stages()


def _ahead(member: Member) -> Ahead | None:
    """Tokens that are known or guessed to follow."""
    left = member.tokens_max - len(member.tokens) - 1
    if member.constraint is not None:
        # What is fed has no chances to tell of.
        forced = member.constraint.forced() if member.logprobs is None and member.failure is None else []
        return Ahead(min(left, len(forced))) if forced and left > 0 else None
    guesser = member.guesser
    if guesser is None or left <= 0 or not guesser.record.may_guess:
        return None
    longest = min(left, guesser.may_follow(member.tokens))
    return Ahead(longest, guesser.record.likely_right, guesser.token_s) if longest else None


def _fed(member: Member, ahead: Ahead | None, count: int) -> list[int]:
    """What is fed behind the last token, at most so many."""
    if ahead is None or count == 0:
        return []
    if member.constraint is not None:
        return member.constraint.forced()[: min(count, ahead.longest)]
    assert member.guesser is not None
    return member.guesser.guess(member.tokens, min(count, ahead.longest))


def _told(member: Member, token: int, chances: Chances | None) -> Choice:
    member.tokens.append(token)
    if member.constraint is not None and member.failure is None:
        try:
            member.constraint.accept([token])
        except RpcError as error:
            member.failure = error
    return Choice(member.id, token, chances)


def _as_ints(tokens: mx.array) -> list[int]:
    values: list[int] = tokens.tolist()  # type: ignore[assignment]
    return values
