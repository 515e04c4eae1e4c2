"""What a request will cost, in tokens, before anybody has counted them. Pure.

A cost is what the answer is expected to have, plus the prompt's tokens at what one of them costs beside one of an answer.
Both are learned from requests that have ended: no prompt is tokenised to find a place in a queue, and `max_tokens` is a
bound, not an expectation.
"""

import math

import msgspec

from mlxsup.protocol.generation import Message, TextPart
from mlxsup.protocol.worker_link import Generate

_LEARNING = 0.1
_ANSWERS_LEARNING = 0.02
_TOKENS_PER_CHAR = 0.25
# What a chat template puts around each message.
_TOKENS_PER_MESSAGE = 4


class _Answers(msgspec.Struct):
    """Tokens of answers: their mean, and the mean of their squares, of all at first and then of the last ones."""

    mean: float
    square: float
    count: int = 1

    @property
    def deviation(self) -> float:
        return math.sqrt(max(0.0, self.square - self.mean**2))

    def learn(self, tokens: int) -> None:
        self.count += 1
        share = max(_ANSWERS_LEARNING, 1 / self.count)
        self.mean += share * (tokens - self.mean)
        self.square += share * (tokens**2 - self.square)


class CostModel:
    """For one model."""

    def __init__(self) -> None:
        self._tokens_per_char = _TOKENS_PER_CHAR
        # Of answers, by the magnitude of the `max_tokens` that they were given.
        self._answers: dict[int, _Answers] = {}

    def prompt_tokens(self, order: Generate) -> int:
        if order.prompt_tokens is not None:
            return len(order.prompt_tokens)
        extra = _TOKENS_PER_MESSAGE * len(order.messages or ())
        return max(1, round(_chars(order) * self._tokens_per_char) + extra)

    def answer_tokens(self, order: Generate) -> int:
        """As many as such answers have had."""
        learned = self._answers.get(order.max_tokens.bit_length())
        return order.max_tokens if learned is None else max(1, min(order.max_tokens, round(learned.mean)))

    def answer_tokens_likely_max(self, order: Generate) -> int:
        """Most of such answers have had no more: a deviation above the mean."""
        learned = self._answers.get(order.max_tokens.bit_length())
        if learned is None:
            return order.max_tokens
        return max(1, min(order.max_tokens, round(learned.mean + learned.deviation)))

    def tokens_left(self, order: Generate, delivered: int) -> float:
        """Of the answer. One that is longer than most goes on as if it were any of those that are."""
        learned = self._answers.get(order.max_tokens.bit_length())
        if learned is None:
            return float(order.max_tokens - delivered)
        left = max(learned.mean - delivered, learned.deviation / 2, 1.0)
        return min(left, float(order.max_tokens - delivered))

    def learn(self, order: Generate, prompt_tokens: int, answer_tokens: int) -> None:
        """A request was answered with so many."""
        chars = _chars(order)
        if chars and prompt_tokens:
            extra = _TOKENS_PER_MESSAGE * len(order.messages or ())
            seen = max(0, prompt_tokens - extra) / chars
            self._tokens_per_char += _LEARNING * (seen - self._tokens_per_char)
        self._learn_answer(order, answer_tokens)

    def learn_cut_off(self, order: Generate, answer_tokens: int) -> None:
        """It had so many when its time was over, and would have gone on: as those do that get so far.

        Were only those counted that were in time, all answers would seem short (compare Buckley and James 1979).
        """
        self._learn_answer(order, answer_tokens + round(self.tokens_left(order, answer_tokens)))

    def _learn_answer(self, order: Generate, tokens: int) -> None:
        magnitude = order.max_tokens.bit_length()
        answers = self._answers.get(magnitude)
        if answers is None:
            # The shortest answers are complete first: it begins as if one had been half as long as it might be.
            half = order.max_tokens / 2
            answers = self._answers[magnitude] = _Answers(half, half**2)
        answers.learn(tokens)


def _chars(order: Generate) -> int:
    if order.prompt is not None:
        return len(order.prompt)
    return sum(map(_message_chars, order.messages or ()))


def _message_chars(message: Message) -> int:
    content = message.content
    if content is None:
        return 0
    if isinstance(content, str):
        return len(content)
    return sum(len(part.text) for part in content if isinstance(part, TextPart))
