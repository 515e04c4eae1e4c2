"""Formats and tool choices as grammars that llguidance reads. Pure."""

import itertools
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from llguidance import LLMatcher

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import (
    ChoiceFormat,
    JsonObjectFormat,
    JsonSchemaFormat,
    RegexFormat,
    ResponseFormat,
)
from mlxsup.worker.engine.grammar.schema_terms import PATH, formats_as_patterns, refuse_own, subschemas
from mlxsup.worker.engine.grammar.vocabulary import Vocabulary
from mlxsup.worker.engine.outputs.dialect import ToolMarkers

if TYPE_CHECKING:
    # Only its types know of it.
    from llguidance._lib import JsonCompileOptions

# As `json.dumps` writes it. Were any white space allowed, some models would say nothing else up to the limit.
_JSON_FORM: "JsonCompileOptions" = {
    "whitespace_flexible": False,
    "key_separator": ": ",
    "item_separator": ", ",
    # Written with escapes of the other kind, a property's name could be that of one that is given already.
    "json_allowed_escapes": 'nrbtf\\"',
}


class Source(msgspec.Struct, frozen=True):
    """`path` is the parameter that it comes from, `schema` what it says of JSON, `parts` are grammars of parts of it."""

    grammar: str
    path: str
    schema: Any = None
    parts: tuple[str, ...] = ()


def of_format(format: ResponseFormat) -> Source | None:
    """None for plain text.

    Raises:
        RpcError: UNSUPPORTED for what can't be kept.
    """
    match format:
        case JsonObjectFormat():
            return Source(_of_schema({"type": "object"}), "$.response_format")
        case JsonSchemaFormat(json_schema=named):
            refuse_own(named.schema)
            return Source(_of_schema(named.schema), PATH, named.schema, _parts(named.schema))
        case RegexFormat(pattern=pattern):
            return Source(LLMatcher.grammar_from_regex(pattern), "$.response_format.pattern")
        case ChoiceFormat(choices=choices):
            alternatives = " | ".join(json.dumps(choice) for choice in dict.fromkeys(choices))
            lark = LLMatcher.grammar_from_lark(f"start: {alternatives}")
            return Source(lark, "$.response_format.choices")
        case _:
            return None


def of_tools(tools: Sequence[dict[str, Any]], markers: ToolMarkers, vocabulary: Vocabulary) -> Source:
    """Exactly one call of one of these."""
    calls: list[tuple[str, dict[str, Any]]] = []
    for tool in tools:
        parameters = tool["function"].get("parameters") or {"type": "object"}
        refuse_own(parameters)
        calls.append((tool["function"]["name"], parameters))
    form = {"x-guidance": _JSON_FORM}
    # Each schema for itself: places that a schema refers to are places in itself.
    alternatives = " | ".join(f"call_{number}" for number in range(len(calls)))
    lines = [
        f"call_{number}: {_opening(name)} args_{number} {json.dumps('}')}\nargs_{number}: %json {json.dumps(schema | form)}"
        for number, (name, schema) in enumerate(calls)
    ]
    parts = [
        _terminal(markers.start, vocabulary),
        '"["' if markers.style == "json_list" else "",
        f"({alternatives})",
        '"]"' if markers.style == "json_list" else "",
        _terminal(markers.end, vocabulary),
    ]
    start = " ".join(part for part in parts if part)
    return Source(LLMatcher.grammar_from_lark("\n".join([f"start: {start}", *lines])), "$.tools")


def _opening(name: str) -> str:
    return json.dumps(f'{{"name": {json.dumps(name)}, "arguments": ')


def _terminal(text: str, vocabulary: Vocabulary) -> str:
    if not text:
        return ""
    token = vocabulary.is_special(text)
    return json.dumps(text) if token is None else f"<[{token}]>"


def _parts(schema: dict[str, Any]) -> tuple[str, ...]:
    """Of what is inside, where it can stand for itself."""
    definitions: dict[str, Any] = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    parts: list[str] = []
    chars = 0
    for each in itertools.islice(subschemas(schema), 1, 1 + _PARTS_MAX):
        part = _of_schema({**definitions, **each})
        chars += len(part)
        if chars > _PARTS_CHARS_MAX:
            break
        parts.append(part)
    return tuple(parts)


_PARTS_MAX = 200
# Each of them is compiled, with all definitions.
_PARTS_CHARS_MAX = 1024 * 1024


def _of_schema(schema: dict[str, Any]) -> str:
    try:
        return str(
            LLMatcher.grammar_from_json_schema(json.dumps(formats_as_patterns(schema)), overrides=_JSON_FORM)
        )
    except (RecursionError, ValueError):
        # It reads no more than 128 levels of JSON.
        raise RpcError(
            ErrorKind.LIMIT_EXCEEDED, f"`{PATH}` is nested too deeply; simplify it", path=PATH
        ) from None
