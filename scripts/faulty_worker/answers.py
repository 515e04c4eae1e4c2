"""What a request's tokens are and say: all of it is known beforehand, from its script alone. Pure."""

import msgspec

from mlxsup.protocol.generation import CalledFunction, TokenChance, TokenLogprob, ToolCall
from scripts.faulty_worker.script import Script

VOCABULARY_TOKENS = 49152
_PIECES = (
    " the",
    " of",
    "ing",
    ",",
    " and",
    " model",
    "\n",
    ' "',
    "é",
    " supervis",
    "ed",
    ".",
    " in",
    "s",
    " 東",
    "\t",
)
_STRIDE = 7
_TOKEN_STRIDE = 7919


class Said(msgspec.Struct, frozen=True):
    """What some tokens of an answer make certain."""

    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = []

    def __add__(self, other: "Said") -> "Said":
        return Said(
            self.text + other.text, self.reasoning + other.reasoning, self.tool_calls + other.tool_calls
        )

    def behind(self, chars: int, reasoning_chars: int, tool_calls: int) -> "Said":
        """What is left where so much was said before."""
        return Said(self.text[chars:], self.reasoning[reasoning_chars:], self.tool_calls[tool_calls:])


def faulty_text(seed: int, tokens: int) -> str:
    """All the text of the first `tokens` tokens of a request with this seed, where they are nothing but text."""
    return "".join(_piece(seed, number) for number in range(tokens))


def faulty_tokens(seed: int, tokens: int) -> list[int]:
    return [token_at(seed, number) for number in range(tokens)]


def token_at(seed: int, number: int) -> int:
    return (seed + number * _TOKEN_STRIDE) % VOCABULARY_TOKENS


def faulty_answer(script: Script, tokens: int) -> Said:
    """All that the first `tokens` tokens say."""
    parts = [said_at(script, number) for number in range(tokens)]
    return Said(
        "".join(part.text for part in parts),
        "".join(part.reasoning for part in parts),
        [call for part in parts for call in part.tool_calls],
    )


def said_at(script: Script, number: int) -> Said:
    piece = _piece(script.seed, number)
    if number < script.reasoning_tokens:
        return Said(reasoning=piece)
    if script.call_every_tokens and number % script.call_every_tokens == script.call_every_tokens - 1:
        arguments = msgspec.json.encode({"number": number, "piece": piece}).decode()
        id = f"call-{script.seed}-{number}"
        return Said(tool_calls=[ToolCall(id=id, function=CalledFunction(name="look", arguments=arguments))])
    return Said(piece)


def faulty_logprobs(seed: int, tokens: int, top: int) -> list[TokenLogprob]:
    """Of the first `tokens` tokens, with so many in the place of each."""
    return [logprob_at(seed, number, top) for number in range(tokens)]


def logprob_at(seed: int, number: int, top: int) -> TokenLogprob:
    token = token_at(seed, number)
    others = [
        TokenChance(
            token=(token + place) % VOCABULARY_TOKENS, text=_piece(token, place), logprob=-0.5 - place
        )
        for place in range(top)
    ]
    return TokenLogprob(token=token, text=_piece(seed, number), logprob=-0.5 - number / 64, top=others)


def _piece(seed: int, number: int) -> str:
    # The number stands in it now and then: a text that skips a whole round of pieces is another text.
    return f" {number}" if (seed + number) % 8 == 0 else _PIECES[(seed + number * _STRIDE) % len(_PIECES)]
