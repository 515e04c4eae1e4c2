"""Refuses what a JSON schema says that the grammar could not keep, by name and place. Pure."""

import json
import re
from collections.abc import Iterator
from typing import Any

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.worker.engine.grammar.formats import PATTERNS

PATH = "$.response_format.json_schema.schema"
# Within one another and beside: what llguidance follows it follows on a stack that holds as many.
SCHEMAS_MAX = 10_000
# Above it numbers are rounded before they are compared.
_EXACT_MAX = 2**53
_BOUNDS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})

# What llguidance says of keywords that it knows and can't keep.
_UNIMPLEMENTED = re.compile(r"Unimplemented keys: (\[.*?\])")
_NAMED = re.compile(r"^[$A-Za-z_][A-Za-z0-9_]*$")
# Keywords below which there are names of properties, not keywords.
_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
# And below which there is no schema.
_VALUES = frozenset({"const", "default", "dependentRequired", "enum", "example", "examples", "required"})
# What llguidance keeps, and what says nothing of which values are valid. What else it knows it refuses itself.
_KNOWN = frozenset(
    [
        "$schema",
        "$id",
        "$comment",
        "$anchor",
        "$defs",
        "definitions",
        "$ref",
        "title",
        "description",
        "default",
        "example",
        "examples",
        "deprecated",
        "readOnly",
        "writeOnly",
        "type",
        "enum",
        "const",
        "anyOf",
        "allOf",
        "oneOf",
        "not",
        "if",
        "then",
        "else",
        "properties",
        "required",
        "additionalProperties",
        "patternProperties",
        "propertyNames",
        "minProperties",
        "maxProperties",
        "dependentRequired",
        "dependentSchemas",
        "dependencies",
        "unevaluatedProperties",
        "items",
        "prefixItems",
        "additionalItems",
        "minItems",
        "maxItems",
        "uniqueItems",
        "contains",
        "minContains",
        "maxContains",
        "unevaluatedItems",
        "minLength",
        "maxLength",
        "pattern",
        "format",
        "contentEncoding",
        "contentMediaType",
        "contentSchema",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
    ]
)
# Ours to refuse: the first would switch the refusals off, the others mean a list of items in old drafts only.
_OWN = {
    "x-guidance": "it is none of JSON Schema's",
    "additionalItems": "say `prefixItems` and `items` instead",
    "$dynamicRef": "say `$ref` instead",
    "$recursiveRef": "say `$ref` instead",
}


def refuse_own(schema: Any) -> None:
    """
    Raises:
        RpcError: UNSUPPORTED for what llguidance would take and not keep, LIMIT_EXCEEDED for too much.
    """
    try:
        if sum(1 for _ in subschemas(schema)) > SCHEMAS_MAX:
            raise _too_much(f"it has more than {SCHEMAS_MAX} schemas in it")
        for path, keyword, value in _keywords(schema, PATH):
            _refuse_keyword(path, keyword, value)
        for path, inner in _schemas(schema, PATH):
            _refuse_schema(path, inner)
    except RecursionError:
        raise _too_much("it is nested too deeply") from None


def _refuse_keyword(path: str, keyword: str, value: Any) -> None:
    if keyword in _OWN:
        raise unsupported(keyword, path, _OWN[keyword])
    if keyword == "multipleOf" and isinstance(value, float) and not value.is_integer():
        raise unsupported(
            "multipleOf", path, "of fractions no two programs agree what divides them; give an integer"
        )
    if keyword not in _KNOWN and not keyword.startswith("x-"):
        raise unsupported(keyword, path, "it is no keyword of JSON Schema that could be kept; leave it out")
    if keyword == "items" and isinstance(value, list):
        raise unsupported("items", path, "a list of items is `prefixItems` today")
    if keyword == "$ref" and not str(value).startswith("#"):
        raise unsupported(
            "$ref", path, "it may only lead to a place in the same schema, as in `#/$defs/name`"
        )
    if keyword == "format" and value == "unknown":
        raise unsupported("format", path, "`unknown` is a name that llguidance has for none")
    if keyword in _BOUNDS and isinstance(value, int | float) and abs(value) > _EXACT_MAX:
        raise unsupported(keyword, path, "above 2**53 numbers can't be compared exactly")
    if keyword in ("const", "enum"):
        _refuse_value(path, keyword, value)


def _refuse_value(path: str, keyword: str, value: Any) -> None:
    todo = [value]
    while todo:
        each = todo.pop()
        if isinstance(each, dict):
            todo += each.values()
        elif isinstance(each, list):
            todo += each
        elif isinstance(each, str) and any(
            (char < " " and char not in "\b\f\n\r\t") or char == "\x7f" for char in each
        ):
            raise unsupported(keyword, path, "it has a control character that only an escape could say")
        elif isinstance(each, int | float) and abs(each) > _EXACT_MAX:
            raise unsupported(keyword, path, "above 2**53 numbers can't be compared exactly")


def _refuse_schema(path: str, schema: dict[str, Any]) -> None:
    least, required = schema.get("minProperties", 0), schema.get("required", [])
    named = len(set(map(str, required))) if isinstance(required, list) else 0
    if isinstance(least, int | float) and least > named + 1:
        raise unsupported(
            "minProperties",
            path,
            "names may come twice, and count once: it may be one more than `required` has",
        )


def refusal(words: str, schema: Any) -> RpcError:
    """What llguidance said of a schema, told with the place that it means."""
    found = _UNIMPLEMENTED.search(words)
    names = set(json.loads(found[1])) if found else set()
    for path, keyword, _ in _keywords(schema, PATH):
        if keyword in names:
            return unsupported(keyword, path, "leave it out, and check the answer for it")
    kind = ErrorKind.INVALID_PARAMS if words.startswith("Unsatisfiable") else ErrorKind.UNSUPPORTED
    first = (words.splitlines() or ["it is too complex"])[0][:300]
    return RpcError(kind, f"`{PATH}` can't be kept: {first}", path=PATH)


def unsupported(keyword: str, path: str, advice: str) -> RpcError:
    return RpcError(
        ErrorKind.UNSUPPORTED,
        f"`{path}` says `{keyword}`, which can't be kept while an answer is written: {advice}",
        path=path,
    )


def formats_as_patterns(schema: Any) -> Any:
    """The same, with formats of strings as patterns that all who check them agree with."""
    if isinstance(schema, list):
        return [formats_as_patterns(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    changed = {
        keyword: value if keyword in _VALUES else formats_as_patterns(value)
        for keyword, value in schema.items()
    }
    pattern = PATTERNS.get(str(schema.get("format")))
    if pattern is not None and "pattern" not in schema:
        del changed["format"]
        changed["pattern"] = f"^(?:{pattern})$"
    return changed


def subschemas(schema: Any) -> Iterator[dict[str, Any]]:
    """It and those in it, the outer ones first."""
    if not isinstance(schema, dict):
        return
    yield schema
    for _, _, value in _below(schema, ""):
        yield from subschemas(value)


def _schemas(schema: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if not isinstance(schema, dict):
        return
    yield path, schema
    for below, _, value in _below(schema, path):
        yield from _schemas(value, below)


def _too_much(why: str) -> RpcError:
    return RpcError(ErrorKind.LIMIT_EXCEEDED, f"`{PATH}` is too complex: {why}; simplify it", path=PATH)


def _keywords(schema: Any, path: str) -> Iterator[tuple[str, str, Any]]:
    """Each keyword with the path of the schema that says it."""
    if not isinstance(schema, dict):
        return
    for keyword, value in schema.items():
        yield path, keyword, value
    for below, _, value in _below(schema, path):
        yield from _keywords(value, below)


def _below(schema: dict[str, Any], path: str) -> Iterator[tuple[str, str, Any]]:
    for keyword, value in schema.items():
        if keyword in _VALUES:
            continue
        here = _at(path, keyword)
        if isinstance(value, list):
            for index, each in enumerate(value):
                yield f"{here}[{index}]", keyword, each
        elif keyword in _MAPS and isinstance(value, dict):
            for name, each in value.items():
                yield _at(here, name), keyword, each
        else:
            yield here, keyword, value


def _at(path: str, name: str) -> str:
    return f"{path}.{name}" if _NAMED.match(name) else f"{path}[{json.dumps(name)}]"
