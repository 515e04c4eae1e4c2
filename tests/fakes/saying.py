"""What answers may have beside their text, for tests."""

from mlxsup.protocol.generation import CalledFunction, TokenChance, TokenLogprob, ToolCall
from mlxsup.protocol.logprobs import encode_entries
from mlxsup.supervisor.generation.extras import Extras


def call(name: str) -> ToolCall:
    return ToolCall(id=f"id of {name}", function=CalledFunction(name=name, arguments='{"é": 1}'))


def logprob(token: int) -> TokenLogprob:
    other = TokenChance(token=token + 1, text="\ufffd", logprob=-1.5)
    return TokenLogprob(token=token, text=f"{token} ", logprob=-0.25, top=[other])


def chances(*tokens: int) -> Extras:
    """Of these tokens, one after the other."""
    return Extras(tokens=tokens, logprobs=encode_entries(map(logprob, tokens)))
