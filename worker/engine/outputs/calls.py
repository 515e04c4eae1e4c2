"""Tool calls out of what a model says between its markers. Pure: the parser is an argument."""

import hashlib
import json
from array import array
from typing import Any

from mlxsup.protocol.generation import CalledFunction, ToolCall
from mlxsup.worker.engine.outputs.dialect import ParseCalls

# As many as a message takes that brings them back.
CALLS_MAX = 128
# What a message takes in `tool_call_id`.
CALL_ID_CHARS_MAX = 128

# From each of these mlx-lm's parser of that name may look through all that follows. More characters in all would take it up to
# minutes, in which nobody is given a token.
_LOOKED_FROM = {
    "function_gemma": "call:",
    "gemma4": "call:",
    "glm47": "<arg_key>",
    "kimi_k3": "<|open|>",
    "muse_spark": "<atem:",
}
LOOKED_AT_CHARS_MAX = 1 << 21

# Mistral's templates refuse ids of any other length and of any other letters; no others are choosy.
_ID_CHARS = 9
_ID_LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class CallReader:
    """Of one answer. Ids follow from its prompt, its seed and the number of the call: another worker gives the same ones."""

    def __init__(
        self, parse: ParseCalls, tools: list[dict[str, Any]], *, seed: int, prompt_tokens: list[int]
    ) -> None:
        self._parse = parse
        self._looked_from = _LOOKED_FROM.get(getattr(parse, "__module__", "").rpartition(".")[2])
        self._tools = [_complete(tool) for tool in tools]
        self._names = {tool["function"]["name"] for tool in tools}
        self._seed = seed
        self._prompt_tokens = prompt_tokens
        self._ids: list[str] = []

    def read(self, body: str) -> list[ToolCall] | None:
        """The calls that it says; None: it says none, or not only calls of the tools that there are."""
        if self._looked_from and len(body) * body.count(self._looked_from) > LOOKED_AT_CHARS_MAX:
            return None
        try:
            said = self._parse(body, self._tools)
            calls = [self._function(call) for call in (said if isinstance(said, list) else [said])]
        except Exception:  # noqa: BLE001  (parsers meet any text, and each fails in ways of its own)
            return None
        if not calls or len(self._ids) + len(calls) > CALLS_MAX:
            return None
        return [ToolCall(id=self._id(own), function=function) for function, own in calls]

    def _function(self, call: dict[str, Any]) -> tuple[CalledFunction, object]:
        """Also the id that the model gave it. Raises ValueError, LookupError or TypeError."""
        name = call["name"]
        if name not in self._names:
            raise ValueError("no such tool")
        arguments = call.get("arguments", call.get("parameters", {}))
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
        if not isinstance(arguments, dict):
            raise ValueError("arguments are an object")
        return CalledFunction(name=name, arguments=_json_text(arguments)), call.get("id")

    def _id(self, own: object) -> str:
        # Some models number their calls, and their templates want to see the number again.
        usable = isinstance(own, str) and 0 < len(own) <= CALL_ID_CHARS_MAX and own.isprintable()
        id = own if isinstance(own, str) and usable and own not in self._ids else self._made_id()
        self._ids.append(id)
        return id

    def _made_id(self) -> str:
        digest = hashlib.blake2b(array("q", self._prompt_tokens).tobytes(), digest_size=16)
        digest.update(f"{self._seed} {len(self._ids)}".encode())
        number = int.from_bytes(digest.digest())
        letters = []
        for _ in range(_ID_CHARS):
            number, letter = divmod(number, len(_ID_LETTERS))
            letters.append(_ID_LETTERS[letter])
        return "".join(letters)


def leaves_a_string_open(body: str) -> bool:
    """Whether it is the beginning of a JSON text that breaks off within a string: what follows belongs to that."""
    if not body.lstrip().startswith(("{", "[")):
        return False
    try:
        json.loads(body)
    except json.JSONDecodeError as error:
        return error.msg.startswith("Unterminated string")
    except RecursionError:
        return False
    return False


def is_whole_json(body: str) -> bool:
    """Whether nothing of it can be missing, though no marker ends it."""
    if not body.lstrip().startswith(("{", "[")):
        return False
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True


def _json_text(arguments: dict[str, Any]) -> str:
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        # Half of a surrogate pair can be said in JSON, but not be sent as it is.
        return json.dumps(arguments, allow_nan=False)
    return text


def _complete(tool: dict[str, Any]) -> dict[str, Any]:
    """As some parsers want it: what may be left out is there."""
    return {"type": "function", **tool, "function": {"parameters": {"type": "object"}, **tool["function"]}}
