"""Answers of a model that knows nothing: whatever it draws, the text is one that the grammar allows, and it ends in time."""

import datetime
import json
import random
import re
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator, FormatChecker

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import (
    ChoiceFormat,
    JsonObjectFormat,
    JsonSchemaFormat,
    NamedSchema,
    RegexFormat,
    ResponseFormat,
)
from mlxsup.worker.engine.grammar.compiler import Compiled, Compiler
from mlxsup.worker.engine.grammar.sources import of_format
from mlxsup.worker.engine.grammar.walk import Walk
from tests.unit.grammar.schemas import REAL, draw_schema
from tests.unit.grammar.tokens import text_of, vocabulary

AMPLE = 400
RANDOM_SCHEMAS = [draw_schema(random.Random(seed)) for seed in range(200)]


def compiled(format: ResponseFormat) -> Compiled:
    source = of_format(format)
    assert source is not None
    return Compiler(vocabulary(), deadline_s=60.0).compile(source)


def schema_format(schema: dict[str, Any]) -> JsonSchemaFormat:
    return JsonSchemaFormat(json_schema=NamedSchema(schema=schema))


def bits_of(walk: Walk, tokens_left: int) -> list[int]:
    bits = walk.allowed(tokens_left)
    assert bits is not None
    found: list[int] = np.nonzero(np.unpackbits(bits.view(np.uint8), bitorder="little"))[0].tolist()
    return found


def draw(walk: Walk, tokens_max: int, seed: int, jumps: bool = False) -> list[int]:
    """At temperature 1, from random logits; with `jumps` forced tokens are taken at once."""
    size = vocabulary().tokens.vocab_size
    answer: list[int] = []
    while len(answer) < tokens_max:
        if jumps and (forced := walk.forced()[: tokens_max - len(answer)]):
            walk.accept(forced)
            answer += forced
            continue
        allowed = bits_of(walk, tokens_max - len(answer))
        assert allowed
        assert max(allowed) < size
        # A position has the same logits whoever asks.
        logits = np.random.default_rng((seed, len(answer))).gumbel(size=size)
        token = max(allowed, key=lambda each: logits[each])
        walk.accept([token])
        answer.append(token)
        if token in vocabulary().end_tokens:
            break
    return answer


CHECKER = FormatChecker()


@CHECKER.checks("date")
@CHECKER.checks("date-time")
def is_moment(text: object) -> bool:
    """Python knows no year 0, and no second 60; the standard does."""
    if not isinstance(text, str):
        return True
    known = re.sub(r"^0000", "2000", text).replace(":60", ":59").replace("z", "Z")
    return bool(datetime.datetime.fromisoformat(known))


@CHECKER.checks("time")
def is_time(text: object) -> bool:
    return is_moment(f"2000-01-01T{text}") if isinstance(text, str) else True


def is_valid(schema: Any, text: str) -> bool:
    return bool(Draft202012Validator(schema, format_checker=CHECKER).is_valid(json.loads(text)))


@pytest.mark.parametrize("number", range(0, 200, 10))
def test_every_answer_of_a_random_schema_validates_with_room_and_without(number: int) -> None:
    for seed, schema in enumerate(RANDOM_SCHEMAS[number : number + 10], number):
        found = compiled(schema_format(schema))
        for tokens_max in (AMPLE, found.tokens_min, found.tokens_min + 5):
            if tokens_max < found.tokens_min:
                continue
            text = text_of(draw(found.bound.start([]), tokens_max, seed))
            assert is_valid(schema, text), (schema, text)


@pytest.mark.parametrize("name", REAL)
def test_every_answer_of_a_real_schema_validates_with_room_and_without(name: str) -> None:
    schema = REAL[name]
    found = compiled(schema_format(schema))
    for tokens_max in (4 * AMPLE, found.tokens_min, found.tokens_min + 20):
        for seed in range(3):
            text = text_of(draw(found.bound.start([]), tokens_max, seed))
            assert is_valid(schema, text), text


@pytest.mark.parametrize(
    ("format", "pattern"),
    [
        (RegexFormat(pattern="[a-z]{3}-[0-9]+"), "[a-z]{3}-[0-9]+"),
        (RegexFormat(pattern="(yes|no|maybe)(, (yes|no|maybe))*"), "(yes|no|maybe)(, (yes|no|maybe))*"),
        (RegexFormat(pattern="[a-f]*ab"), "[a-f]*ab"),
        (
            ChoiceFormat(choices=["red", 'a "quoted" one', "reddish", "\u00e9"]),
            'red|a "quoted" one|reddish|\u00e9',
        ),
    ],
)
def test_texts_of_patterns_and_choices_are_among_those_they_allow(
    format: ResponseFormat, pattern: str
) -> None:
    found = compiled(format)
    for tokens_max in (AMPLE, found.tokens_min, found.tokens_min + 3):
        for seed in range(20):
            text = text_of(draw(found.bound.start([]), tokens_max, seed))
            assert re.fullmatch(pattern, text), text


def test_any_object_is_json_that_ends_in_time() -> None:
    found = compiled(JsonObjectFormat())
    for seed in range(20):
        assert isinstance(json.loads(text_of(draw(found.bound.start([]), 60, seed))), dict)


@pytest.mark.parametrize("number", range(0, 60, 10))
def test_forced_tokens_taken_at_once_give_the_same_answer(number: int) -> None:
    for seed, schema in enumerate(RANDOM_SCHEMAS[number : number + 10], number):
        found = compiled(schema_format(schema))
        tokens_max = found.tokens_min + 40
        assert draw(found.bound.start([]), tokens_max, seed, jumps=True) == draw(
            found.bound.start([]), tokens_max, seed
        )


@pytest.mark.parametrize("number", range(0, 40, 10))
def test_an_answer_that_is_taken_up_again_anywhere_goes_on_the_same(number: int) -> None:
    for seed, schema in enumerate(RANDOM_SCHEMAS[number : number + 10], number):
        found = compiled(schema_format(schema))
        tokens_max = found.tokens_min + 40
        whole = found.bound.start([])
        answer = draw(found.bound.start([]), tokens_max, seed)
        for at, token in enumerate(answer):
            resumed = found.bound.start(answer[:at])
            assert bits_of(resumed, tokens_max - at) == bits_of(whole, tokens_max - at)
            whole.accept([token])


def test_end_tokens_come_only_behind_a_complete_text_and_special_ones_never_inside() -> None:
    found = compiled(RegexFormat(pattern=r"(.|\n){2}"))
    ends = set(vocabulary().end_tokens)
    special = {
        each for each in range(vocabulary().tokens.vocab_size) if vocabulary().tokens.is_special_token(each)
    }
    walk = found.bound.start([])
    assert not special & set(bits_of(walk, AMPLE))

    walk.accept(vocabulary().tokens.tokenize_str("xy"))
    assert set(bits_of(walk, AMPLE)) == ends
    walk.accept([min(ends)])
    assert set(bits_of(walk, AMPLE - 3)) == ends


@pytest.mark.parametrize(
    ("schema", "path", "words"),
    [
        ({"type": "array", "uniqueItems": True}, "", "uniqueItems"),
        ({"type": "object", "properties": {"a": {"not": {"type": "null"}}}}, ".properties.a", "not"),
        ({"anyOf": [{"type": "null"}, {"contains": {}}]}, ".anyOf[1]", "contains"),
        (
            {"$ref": "#/$defs/a", "$defs": {"a": {"properties": {"a b": {"if": {}}}}}},
            '.$defs.a.properties["a b"]',
            "if",
        ),
        ({"dependentRequired": {"a": ["b"]}}, "", "dependentRequired"),
        ({"propertyNames": {"pattern": "^a"}}, "", "propertyNames"),
        ({"unevaluatedProperties": False}, "", "unevaluatedProperties"),
        ({"items": [{"type": "null"}]}, "", "items"),
        ({"$ref": "https://example.org/schema"}, "", "$ref"),
        ({"minimun": 3}, "", "minimun"),
        ({"multipleOf": 0.1}, "", "multipleOf"),
        ({"x-guidance": {"lenient": True}, "uniqueItems": True}, "", "x-guidance"),
    ],
)
def test_what_a_grammar_can_not_keep_is_refused_by_name_and_place(
    schema: dict[str, Any], path: str, words: str
) -> None:
    with pytest.raises(RpcError, match=re.escape(f"`{words}`")) as raised:
        compiled(schema_format(schema))

    assert raised.value.kind is ErrorKind.UNSUPPORTED
    place = raised.value.data.path
    assert place == f"$.response_format.json_schema.schema{path}"


def test_keywords_that_say_nothing_of_what_is_valid_are_taken() -> None:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://example.org/one",
        "$comment": "why",
        "title": "One",
        "description": "what",
        "default": {"uniqueItems": True},
        "examples": [{"not": 1}],
        "deprecated": True,
        "readOnly": True,
        "writeOnly": False,
        "type": "integer",
    }
    assert compiled(schema_format(schema)).tokens_min == 1


@pytest.mark.parametrize(
    "format",
    [
        schema_format({"type": "string", "minLength": 5, "maxLength": 3}),
        schema_format({"type": "object", "required": ["a"], "properties": {}, "additionalProperties": False}),
        RegexFormat(pattern="("),
        RegexFormat(pattern="(?=a)b"),
        schema_format({"type": "string", "format": "unheard of"}),
    ],
)
def test_what_no_text_or_no_grammar_can_be_is_refused_with_its_place(format: ResponseFormat) -> None:
    with pytest.raises(RpcError) as raised:
        compiled(format)
    assert raised.value.kind in {ErrorKind.INVALID_PARAMS, ErrorKind.UNSUPPORTED}
    assert str(raised.value.data.path).startswith("$.response_format.")


EXPLODING: dict[str, ResponseFormat] = {
    "repeated repeats": RegexFormat(pattern="(a{1000}){1000}"),
    "stars of stars": RegexFormat(pattern="((((a*)*)*)*)*b"),
    "optional ones": RegexFormat(pattern="(a?){300}a{300}"),
    "long ends": RegexFormat(pattern="(a|b|ab)*c{500}"),
    "repeats in a schema": schema_format({"type": "string", "pattern": "^(([a-z]{1,100}){1,100}){1,100}$"}),
    "arrays of arrays": schema_format(
        {
            "type": "array",
            "minItems": 1000,
            "items": {"type": "array", "minItems": 1000, "items": {"type": "integer"}},
        }
    ),
    "many choices": ChoiceFormat(choices=[f"choice {number}" for number in range(4096)]),
    "branches of branches": schema_format(
        {
            "anyOf": [
                {
                    "type": "object",
                    "properties": {
                        f"p{at}": {"anyOf": [{"type": "string", "pattern": f"^[a-z]{{{at}}}$"}] * 20}
                        for at in range(20)
                    },
                }
                for _ in range(20)
            ]
        }
    ),
}


@pytest.mark.parametrize("name", EXPLODING)
def test_what_is_built_to_explode_compiles_or_is_refused_in_time_and_its_answers_end(name: str) -> None:
    source = of_format(EXPLODING[name])
    assert source is not None
    text, refused = "", None
    try:
        found = Compiler(vocabulary(), deadline_s=20.0).compile(source)
        text = text_of(draw(found.bound.start([]), found.tokens_min + 30, seed=1))
    except RpcError as error:
        refused = error
    if refused is None:
        assert text
    else:
        assert refused.kind in {ErrorKind.LIMIT_EXCEEDED, ErrorKind.INVALID_PARAMS}
        assert "response_format" in str(refused)
