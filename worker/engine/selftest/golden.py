"""The prompts of a self-test: the same for everybody, in the tokens of each model. Pure."""

from collections.abc import Callable

import msgspec

# What a model has seen much of, so that it knows what comes next, and there is little that rounding could decide.
_TEXTS = (
    "One, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen, fourteen, fifteen, sixteen,",
    "The capital of France is Paris. The capital of Italy is Rome. The capital of Spain is Madrid. The capital of",
    "def add(a, b):\n    return a + b\n\n\ndef subtract(a, b):\n    return a - b\n\n\ndef multiply(a, b):\n    return",
    "A B C D E F G H I J K L M N O P Q R S",
    "To be, or not to be: that is",
    "January, February, March, April, May, June, July, August, September, October,",
    "2 4 6 8 10 12 14 16 18 20 22 24",
)

# Of its text, so many tokens, and so many of an answer: as unlike as those of requests that meet by chance.
_SHAPES = (
    (21, 5),
    (2, 1),
    (8, 2),
    (6, 2),
    (1, 2),
    (7, 3),
    (4, 1),
)
# The last one begins like the first, and goes on like another.
_COMMON_TOKENS = 18
_FORKED_TOKENS = 4
_FORKED_ANSWER_TOKENS = 2


class Golden(msgspec.Struct, frozen=True):
    tokens: list[int]
    answer_tokens: int


def golden_prompts(encode: Callable[[str], list[int]], context_tokens: int) -> list[Golden]:
    """Eight, all different, of which the first and the last have a beginning in common; `encode` makes the tokens of a prompt.

    Each has room for its answer in `context_tokens`.
    """
    encoded = [encode(text) for text in _TEXTS]
    prompts = [
        Golden(_first(tokens, min(length, context_tokens - answer)), answer)
        for tokens, (length, answer) in zip(encoded, _SHAPES, strict=True)
    ]
    room = context_tokens - _FORKED_ANSWER_TOKENS
    forked = _first(encoded[0], _COMMON_TOKENS) + _first(encoded[1], _FORKED_TOKENS)
    return [*prompts, Golden(_first(forked, min(len(forked), room)), _FORKED_ANSWER_TOKENS)]


def _first(tokens: list[int], count: int) -> list[int]:
    """So many, at least one, and the same ones again where there are fewer."""
    count = max(1, count)
    # A tokenizer may know nothing of any of these letters.
    tokens = tokens or [0]
    return (tokens * (count // len(tokens) + 1))[:count]
