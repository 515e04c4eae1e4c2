"""How many tokens of prompts are read at once, by the time that it takes. Pure."""

import math

from mlxsup.worker.engine.smoothing import smoothed

# Of a model that has read nothing yet; and whatever it takes.
_FIRST_TOKENS = 32
_LEAST_TOKENS = 16
# Whole blocks of it are computed as fast as what is a little less.
_BLOCK_TOKENS = 8


class Pace:
    """As measured in passes over chunks that were about as long as they may be: each has a cost of its own besides."""

    def __init__(self, tokens_per_s: float | None = None) -> None:
        """As measured before, if it was."""
        self.seconds_per_token = 1 / tokens_per_s if tokens_per_s else 0.0

    def learn(self, tokens: int, pass_s: float, chunk_tokens: int) -> None:
        """A pass over so many tokens, where a chunk may have `chunk_tokens`, took so long."""
        if 2 * tokens >= chunk_tokens or not self.seconds_per_token:
            self.seconds_per_token = smoothed(self.seconds_per_token, pass_s / tokens)

    def tokens_in(self, seconds: float, tokens_max: int) -> int:
        """A chunk that takes about so long, of at most so many tokens."""
        if math.isinf(seconds):
            return tokens_max
        if not self.seconds_per_token:
            return min(tokens_max, _FIRST_TOKENS)
        tokens = int(seconds / self.seconds_per_token) // _BLOCK_TOKENS * _BLOCK_TOKENS
        return min(tokens_max, max(_LEAST_TOKENS, tokens))
