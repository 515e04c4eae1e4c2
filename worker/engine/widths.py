"""How many tokens that are known or guessed are fed to the model at once, behind the last of each sequence. Pure.

A pass over several tokens of a sequence takes longer than one over a single token, by what was measured, and gives as many
tokens as prove right. The whole batch waits for it. It pays if the sequences' speeds, all multiplied, grow: what some gain
then weighs more than what all others lose (proportional fairness: Kelly 1997, Charging and rate control for elastic traffic).
"""

import math
from collections.abc import Sequence
from typing import Protocol

import msgspec

from mlxsup.worker.engine.smoothing import smoothed

TOKENS_MAX = 16
# A gain that noise could undo is none.
_GAIN_MIN = 1.05
_RIGHT_FIRST = 0.6
_RIGHT_LEAST = 0.5
_LEARNING = 0.2
# So often a sequence whose guesses were wrong may try again, in tokens; and costs are forgotten, in passes.
_RETRY_TOKENS = 64
_FORGET = 0.99


class Record(msgspec.Struct):
    """How the guesses for one sequence went: `right` is the share of them that proved right."""

    right: float = _RIGHT_FIRST
    # Tokens since it was guessed for.
    silent: int = 0

    def learn(self, guessed: int, proved: int) -> None:
        """So many of the first ones in a row were right. What came behind a wrong one says nothing."""
        if guessed == 0:
            self.silent += 1
            return
        if not self.is_mostly_right:
            self.right = _RIGHT_LEAST
        self.silent = 0
        for at in range(min(guessed, proved + 1)):
            self.right += _LEARNING * ((at < proved) - self.right)

    @property
    def is_mostly_right(self) -> bool:
        return self.right >= _RIGHT_LEAST

    @property
    def may_guess(self) -> bool:
        """Guesses are looked for while most are right, and after a while once more."""
        return self.is_mostly_right or self.silent >= _RETRY_TOKENS

    @property
    def likely_right(self) -> float:
        return max(self.right, _RIGHT_LEAST)


class Guesser(Protocol):
    """Guesses how one sequence goes on. What it is given only ever becomes more."""

    record: Record

    @property
    def token_s(self) -> float:
        """What one guess takes."""
        ...

    def may_follow(self, tokens: list[int]) -> int:
        """So many tokens it could guess, 0: none."""
        ...

    def guess(self, tokens: list[int], count: int) -> list[int]:
        """The next ones, no more than it could."""
        ...


class Ahead(msgspec.Struct, frozen=True):
    """So many tokens could be fed to one sequence behind its last. Of guesses `right` says how likely each is, and `token_s` how
    long it takes to guess it; None: they are certain.
    """

    longest: int
    right: float | None = None
    token_s: float = 0.0

    def gain(self, count: int) -> float:
        """Tokens that feeding so many of them gives, in the mean."""
        count = min(count, self.longest)
        if self.right is None or self.right >= 1.0:
            return float(count)
        return self.right * (1.0 - self.right**count) / (1.0 - self.right)


class Widths:
    def __init__(self) -> None:
        # Seconds of a pass over one token of each, by the number of sequences.
        self._plain_s: dict[int, float] = {}
        # What one token more of one sequence adds to a pass.
        self._token_s = 0.0
        self._is_stopped = False

    def stop(self) -> None:
        """From now on one token of each is fed at a time, whatever would pay."""
        self._is_stopped = True

    def learn(self, sequences: int, columns: int, pass_s: float) -> None:
        """A pass over so many tokens of each took so long."""
        if columns == 1:
            self._plain_s[sequences] = smoothed(self._plain_s.get(sequences, 0.0), pass_s)
            self._token_s *= _FORGET
        elif sequences in self._plain_s:
            more_s = (pass_s - self._plain_s[sequences]) / (sequences * (columns - 1))
            self._token_s = smoothed(self._token_s, max(more_s, 1e-9))

    def choose(self, aheads: Sequence[Ahead | None]) -> int:
        """How many of each are fed, at most; 0: it does not pay. One entry for each sequence of the batch."""
        sequences = len(aheads)
        plain_s = self._plain_s.get(sequences)
        known = [ahead for ahead in aheads if ahead is not None]
        if not plain_s or not known or self._is_stopped:
            return 0
        longest = max(ahead.longest for ahead in known)
        best, best_gain = 0, sequences * math.log(_GAIN_MIN)
        for count in range(1, min(longest, TOKENS_MAX) + 1):
            guess_s = sum(ahead.token_s * min(count, ahead.longest) for ahead in known)
            slower = 1.0 + (self._token_s * sequences * count + guess_s) / plain_s
            gain = sum(math.log1p(ahead.gain(count)) for ahead in known) - sequences * math.log(slower)
            if gain > best_gain:
                best, best_gain = count, gain
        return best
