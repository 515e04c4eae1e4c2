"""Guesses how a text goes on from where it has been the same before: prompt lookup decoding (Saxena 2023).

Pure. An answer that edits, quotes or extracts repeats its prompt for long stretches, and needs no other model to guess it.
"""

from mlxsup.worker.engine.widths import TOKENS_MAX, Record

# Fewer tokens than that are the same by chance too often; more miss what is only alike.
_GRAM = 3


class Lookup:
    """Of one sequence, whose tokens only ever become more."""

    def __init__(self) -> None:
        self.record = Record()
        # Behind the last time that these tokens came, not counting the end.
        self._behind: dict[tuple[int, ...], int] = {}
        self._indexed = _GRAM

    # Next to a pass, looking it up takes no time.
    token_s = 0.0

    def may_follow(self, tokens: list[int]) -> int:
        return TOKENS_MAX if self._before(tokens) is not None else 0

    def guess(self, tokens: list[int], count: int) -> list[int]:
        """What came behind the last tokens when they came before, as if it went round; nothing, if they never did."""
        begin = self._before(tokens)
        if begin is None:
            return []
        period = len(tokens) - begin
        return [tokens[begin + at % period] for at in range(count)]

    def _before(self, tokens: list[int]) -> int | None:
        """Behind the last tokens, the time before."""
        for end in range(self._indexed, len(tokens)):
            self._behind[tuple(tokens[end - _GRAM : end])] = end
        self._indexed = max(self._indexed, len(tokens))
        return self._behind.get(tuple(tokens[-_GRAM:]))
