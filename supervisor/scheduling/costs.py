"""What a request will cost, in tokens, before anybody has counted them. Pure.

A cost is what the answer is expected to have, plus the prompt's tokens at what one of them costs beside one of an answer.
Both are learned from requests that have ended: no prompt is tokenised to find a place in a queue, and `max_tokens` is a
bound, not an expectation. Neither is ever more than the model's context.
"""

import math

import msgspec

from mlxsup.protocol.generation import Message
from mlxsup.protocol.worker_link import Embed, Order
from mlxsup.supervisor.generation.request import GenerationRequest

_LEARNING = 0.1
_ANSWERS_LEARNING = 0.02
_TOKENS_PER_CHAR = 0.25
_TOKENS_PER_CHAR_MIN = 0.01
# What a chat template puts around each message.
_TOKENS_PER_MESSAGE = 4
# What an image has in most models, where nothing is known.
_TOKENS_PER_IMAGE = 576.0
# A chat of fewer characters says more of the template than of how many tokens a text has.
_LONG_CHARS = 200


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
    """For one model. `context_tokens` is its context, None as long as nobody has loaded it."""

    def __init__(self) -> None:
        self.context_tokens: int | None = None
        self._tokens_per_char = _TOKENS_PER_CHAR
        # What a template puts around all messages together.
        self._template_tokens = 0.0
        self._tokens_per_image = _TOKENS_PER_IMAGE
        # Of answers, by the magnitude of the `max_tokens` that they were given.
        self._answers: dict[int, _Answers] = {}

    def prompt_tokens(self, request: GenerationRequest) -> int:
        order = request.order
        if isinstance(order, Embed):
            # Of all its texts, each of which may have the whole context.
            return max(1, round(self._text_tokens(request)))
        if order.prompt_tokens is not None:
            return self._within_context(len(order.prompt_tokens))
        return self._within_context(max(1, round(self._text_tokens(request))))

    def answer_tokens(self, order: Order) -> int:
        """As many as such answers have had."""
        bound = self._within_context(order.max_tokens)
        learned = self._answers.get(bound.bit_length())
        return bound if learned is None else max(1, min(bound, round(learned.mean)))

    def answer_tokens_likely_max(self, order: Order) -> int:
        """Most of such answers have had no more: a deviation above the mean."""
        bound = self._within_context(order.max_tokens)
        learned = self._answers.get(bound.bit_length())
        if learned is None:
            return bound
        return max(1, min(bound, round(learned.mean + learned.deviation)))

    def tokens_left(self, order: Order, delivered: int) -> float:
        """Of the answer. One that is longer than most goes on as if it were any of those that are."""
        bound = self._within_context(order.max_tokens)
        left_max = max(0.0, float(bound - delivered))
        learned = self._answers.get(bound.bit_length())
        if learned is None:
            return left_max
        return min(left_max, max(learned.mean - delivered, learned.deviation / 2, 1.0))

    def learn(self, request: GenerationRequest, prompt_tokens: int, answer_tokens: int) -> None:
        """It was answered with so many."""
        if request.prompt_chars and prompt_tokens:
            self._learn_prompt(request, prompt_tokens)
        self._learn_answer(request.order, answer_tokens)

    def _text_tokens(self, request: GenerationRequest) -> float:
        tokens = request.prompt_chars * self._tokens_per_char
        messages = _messages(request.order)
        if messages is None:
            return tokens
        tokens += self._tokens_per_image * request.prompt_images
        return tokens + self._template_tokens + _TOKENS_PER_MESSAGE * len(messages)

    def _learn_prompt(self, request: GenerationRequest, prompt_tokens: int) -> None:
        """What was not foreseen is the text's where that is long, else the template's (normalised least mean squares: Haykin,
        Adaptive Filter Theory, chapter 6): by "hi" alone a character would seem to have a dozen tokens.
        """
        if request.prompt_images:
            # It says more of them than of its text.
            unforeseen = (prompt_tokens - self._text_tokens(request)) / request.prompt_images
            self._tokens_per_image = max(1.0, self._tokens_per_image + _LEARNING * unforeseen)
            return
        chars = request.prompt_chars
        unforeseen = _LEARNING * (prompt_tokens - self._text_tokens(request))
        share = chars**2 / (chars**2 + _LONG_CHARS**2)
        self._tokens_per_char = max(_TOKENS_PER_CHAR_MIN, self._tokens_per_char + share * unforeseen / chars)
        if _messages(request.order) is not None:
            self._template_tokens = max(0.0, self._template_tokens + (1 - share) * unforeseen)

    def _within_context(self, tokens: int) -> int:
        return tokens if self.context_tokens is None else min(tokens, self.context_tokens)

    def learn_cut_off(self, order: Order, answer_tokens: int) -> None:
        """It had so many when its time was over, and would have gone on: as those do that get so far.

        Were only those counted that were in time, all answers would seem short (compare Buckley and James 1979).
        """
        self._learn_answer(order, answer_tokens + round(self.tokens_left(order, answer_tokens)))

    def _learn_answer(self, order: Order, tokens: int) -> None:
        bound = self._within_context(order.max_tokens)
        magnitude = bound.bit_length()
        answers = self._answers.get(magnitude)
        if answers is None:
            # The shortest answers are complete first: it begins as if one had been half as long as it might be.
            half = bound / 2
            answers = self._answers[magnitude] = _Answers(half, half**2)
        answers.learn(tokens)


def _messages(order: Order) -> list[Message] | None:
    return None if isinstance(order, Embed) else order.messages
