"""Guesses that are right or wrong at will, and that are always fed."""

from collections.abc import Sequence

from mlxsup.worker.engine.lookup import Lookup
from mlxsup.worker.engine.widths import TOKENS_MAX, Ahead, Widths


class Eager(Widths):
    """Whatever is known or guessed is fed, as if it always paid."""

    def choose(self, aheads: Sequence[Ahead | None]) -> int:
        return max((ahead.longest for ahead in aheads if ahead is not None), default=0)


class Guesser(Lookup):
    """Knows the text, and is wrong at some of its places."""

    def __init__(self, text: list[int], wrong_one_in: int) -> None:
        super().__init__()
        self._text = text
        self._wrong_one_in = wrong_one_in

    def may_follow(self, tokens: list[int]) -> int:
        self.record.right = 0.9
        return min(TOKENS_MAX, max(0, len(self._text) - len(tokens)))

    def guess(self, tokens: list[int], count: int) -> list[int]:
        begin = len(tokens)
        return [
            token + 1 if at % self._wrong_one_in == 0 else token
            for at, token in enumerate(self._text[begin : begin + count], begin)
        ]
