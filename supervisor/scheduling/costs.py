"""What a request will cost, in tokens, before anybody has counted them. Pure.

A cost is what the answer is expected to have, plus the prompt's tokens at what one of them costs beside one of an answer.
Both are learned from requests that have ended: no prompt is tokenised to find a place in a queue, and `max_tokens` is a
bound, not an expectation.
"""

from mlxsup.protocol.generation import Message, TextPart
from mlxsup.protocol.worker_link import Generate

_LEARNING = 0.1
_TOKENS_PER_CHAR = 0.25
# What a chat template puts around each message.
_TOKENS_PER_MESSAGE = 4


class CostModel:
    """For one model."""

    def __init__(self) -> None:
        self._tokens_per_char = _TOKENS_PER_CHAR
        # Of answers, by the magnitude of the `max_tokens` that they were given.
        self._answers: dict[int, float] = {}

    def prompt_tokens(self, order: Generate) -> int:
        if order.prompt_tokens is not None:
            return len(order.prompt_tokens)
        extra = _TOKENS_PER_MESSAGE * len(order.messages or ())
        return max(1, round(_chars(order) * self._tokens_per_char) + extra)

    def answer_tokens(self, order: Generate) -> int:
        """As many as such answers have had."""
        learned = self._answers.get(order.max_tokens.bit_length())
        return order.max_tokens if learned is None else max(1, min(order.max_tokens, round(learned)))

    def tokens_left(self, order: Generate, delivered: int) -> int:
        """Of the answer. One that is longer than expected is at least at its last token."""
        return max(1, self.answer_tokens(order) - delivered)

    def learn(self, order: Generate, prompt_tokens: int, answer_tokens: int) -> None:
        """A request has ended with so many."""
        chars = _chars(order)
        if chars and prompt_tokens:
            extra = _TOKENS_PER_MESSAGE * len(order.messages or ())
            seen = max(0, prompt_tokens - extra) / chars
            self._tokens_per_char += _LEARNING * (seen - self._tokens_per_char)
        magnitude = order.max_tokens.bit_length()
        before = self._answers.get(magnitude)
        self._answers[magnitude] = (
            float(answer_tokens) if before is None else before + _LEARNING * (answer_tokens - before)
        )


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
