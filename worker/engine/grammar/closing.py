"""How a text that a grammar binds can come to its end soon.

Each choice depends on nothing but the state and the position, so that whoever looks from further on finds the rest of the
same way. It is a short one, not always the shortest.
"""

import functools

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher

from mlxsup.worker.engine.grammar.vocabulary import Vocabulary

# Nobody waits for an end that is further away.
TOKENS_MAX = 2048
_QUOTE = ('"',)
# Between the values of a JSON text, those first that bring it to its end, and then what begins or goes on with a value.
_ENDS = ("}", "]", ",", '"')
_VALUES = ("0", "1", "null", "true", "false", "n", "t", "f", "{", "[", "-", ":", " ", ".")
# Digits that go on for ever, as those of a second in a time, are left by another character now and then.
_TURN_ONE_IN = 3
# Letters that no literal and no number begins or goes on with: they say that this is inside a string.
_INNER = tuple("abcdghijkmopqvwxyzABCDFGHIJ")
_INNER_MIN = 3
# What a pattern most often has one of.
_MARKS = tuple("@:/.-+#_ ")
_CHARACTERS = tuple(map(chr, range(33, 127)))


def closing(
    matcher: LLMatcher, position: int, vocabulary: Vocabulary, tokens_max: int = TOKENS_MAX
) -> list[int] | None:
    """Tokens that complete the text, none if it is complete; None: within so many none were found.

    `matcher` stays as it is; `position` is how many tokens it has accepted.
    """
    ahead = matcher.deep_copy()
    found: list[int] = []
    while not ahead.is_accepting():
        tokens = ahead.compute_ff_tokens() or _next(ahead, position + len(found), vocabulary)
        if not tokens or len(found) + len(tokens) > tokens_max or not ahead.consume_tokens(tokens):
            return None
        found += tokens
    return found


def _next(matcher: LLMatcher, position: int, vocabulary: Vocabulary) -> list[int]:
    allowed = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
    quote, ends, values, inner, characters = _tokens(vocabulary)
    is_inside = sum(bool(allowed[token]) for token in inner) >= _INNER_MIN
    # Going round all characters meets what a pattern waits for.
    at = position % max(1, len(characters))
    turned = characters[at:] + characters[:at]
    outside = (
        (ends, turned, values) if position % _TURN_ONE_IN == _TURN_ONE_IN - 1 else (ends, values, turned)
    )
    for tokens in (quote,) if is_inside else outside:
        found = _first(allowed, tokens)
        if found:
            return found
    return _inside(matcher, allowed, turned, position, vocabulary) or _first(allowed, vocabulary.plain)


def _inside(
    matcher: LLMatcher,
    allowed: npt.NDArray[np.uint8],
    turned: list[int],
    position: int,
    vocabulary: Vocabulary,
) -> list[int]:
    """A character that the string can end behind, or else one that a pattern may wait for."""
    ahead = matcher.deep_copy()
    quote = vocabulary.those_of(_QUOTE)
    for token in turned:
        if allowed[token] and ahead.consume_token(token):
            bits = np.frombuffer(ahead.compute_bitmask(), np.uint8)
            ends = any(bits[end // 8] >> end % 8 & 1 for end in quote) or ahead.is_accepting()
            ahead.rollback(1)
            if ends:
                return [token]
    if position % _TURN_ONE_IN != _TURN_ONE_IN - 1:
        marks = _first(allowed, vocabulary.those_of(_MARKS))
        if marks:
            return marks
    return _first(allowed, turned)


def _first(allowed: npt.NDArray[np.uint8], tokens: list[int]) -> list[int]:
    return next(([token] for token in tokens if allowed[token]), [])


@functools.lru_cache(maxsize=2)
def _tokens(vocabulary: Vocabulary) -> list[list[int]]:
    return [vocabulary.those_of(texts) for texts in (_QUOTE, _ENDS, _VALUES, _INNER, _CHARACTERS)]
