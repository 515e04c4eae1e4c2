"""Schemas that would be kept wrongly, or that end a process which follows them wherever they lead."""

import re
from typing import Any

import pytest

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import JsonSchemaFormat, NamedSchema
from mlxsup.worker.engine.grammar.compiler import Compiled, Compiler
from mlxsup.worker.engine.grammar.schema_terms import PATH, SCHEMAS_MAX
from mlxsup.worker.engine.grammar.sources import of_format
from tests.unit.grammar.tokens import vocabulary

CHAINED = 2000


def compiled(schema: dict[str, Any]) -> Compiled:
    source = of_format(JsonSchemaFormat(json_schema=NamedSchema(schema=schema)))
    assert source is not None
    return Compiler(vocabulary(), deadline_s=60.0).compile(source)


def chain(length: int, *, optional: bool) -> dict[str, Any]:
    """Definitions that lead from one to the next, through a property of each."""
    required = [] if optional else ["p"]
    links: dict[str, Any] = {
        f"a{at}": {
            "type": "object",
            "properties": {"p": {"$ref": f"#/$defs/a{at + 1}"}},
            "required": required,
            "additionalProperties": False,
        }
        for at in range(length)
    }
    return {"$ref": "#/$defs/a0", "$defs": {**links, f"a{length}": {"type": "null"}}}


def test_a_long_chain_of_references_is_followed_to_its_end() -> None:
    assert compiled(chain(CHAINED, optional=True)).tokens_min <= 2


def test_a_chain_that_an_answer_would_have_to_follow_too_far_is_refused() -> None:
    with pytest.raises(RpcError) as raised:
        compiled(chain(CHAINED, optional=False))

    assert raised.value.kind is ErrorKind.LIMIT_EXCEEDED


@pytest.mark.parametrize("levels", [200, 5000])
def test_what_is_nested_too_deeply_is_refused(levels: int) -> None:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}

    with pytest.raises(RpcError, match="nested too deeply") as raised:
        compiled(schema)

    assert raised.value.kind is ErrorKind.LIMIT_EXCEEDED
    assert raised.value.data.path == PATH


def test_more_schemas_than_may_be_in_one_are_refused() -> None:
    with pytest.raises(RpcError, match=f"more than {SCHEMAS_MAX} schemas") as raised:
        compiled({"anyOf": [{"type": "null"}] * SCHEMAS_MAX})

    assert raised.value.kind is ErrorKind.LIMIT_EXCEEDED


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"type": "string", "format": "unknown"}, "format"),
        ({"type": "integer", "minimum": 2**53 + 1}, "minimum"),
        ({"type": "number", "exclusiveMaximum": -1e300}, "exclusiveMaximum"),
        ({"const": 2**53 + 1}, "const"),
        ({"enum": ["a", {"b": [2**60]}]}, "enum"),
        ({"const": "a\x01"}, "const"),
        ({"enum": ["a\x7f"]}, "enum"),
        ({"type": "object", "additionalProperties": {"type": "null"}, "minProperties": 2}, "minProperties"),
        ({"type": "object", "required": ["a", "a"], "minProperties": 3}, "minProperties"),
    ],
)
def test_what_would_be_kept_inexactly_is_refused_by_name(schema: dict[str, Any], keyword: str) -> None:
    with pytest.raises(RpcError, match=re.escape(f"`{keyword}`")) as raised:
        compiled({"type": "object", "properties": {"x": schema}})

    assert raised.value.kind is ErrorKind.UNSUPPORTED
    assert raised.value.data.path == f"{PATH}.properties.x"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "maximum": 2**53},
        {"const": -(2**53)},
        {"const": "a\n"},
        {"type": "object", "required": ["a"], "minProperties": 2},
    ],
)
def test_what_is_just_exact_is_taken(schema: dict[str, Any]) -> None:
    assert compiled(schema).tokens_min >= 1


def test_a_keyword_of_the_wrong_type_is_refused() -> None:
    with pytest.raises(RpcError) as raised:
        compiled({"type": "integer", "multipleOf": "x"})

    assert raised.value.kind in {ErrorKind.UNSUPPORTED, ErrorKind.INVALID_PARAMS}
