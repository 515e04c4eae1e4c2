"""JSON schemas: drawn at random, and as real programs send them."""

import random
from typing import Any

WORDS = ("id", "name", "age", "tags", "items", "a b", "é", "x-y", "url", "kind")
PATTERNS = (
    "^[a-z]{2,5}$",
    "^(foo|bar)+$",
    "^[A-Z][a-z]*( [A-Z][a-z]*)?$",
    r"^\d{3}-\d{4}$",
    "^#[0-9a-f]{6}$",
)
FORMATS = ("date", "time", "date-time", "uuid", "email", "ipv4")


def draw_schema(chance: random.Random, depth: int = 3) -> dict[str, Any]:  # noqa: C901, PLR0912  (a table)
    kinds = ["string", "integer", "number", "boolean", "null", "enum", "const", "pattern", "format"]
    if depth > 0:
        kinds += ["object", "object", "object", "array", "array", "anyOf", "tuple", "map", "ref"]
    kind = chance.choice(kinds)
    below = depth - 1
    match kind:
        case "string":
            least = chance.randint(0, 4)
            return chance.choice(
                [
                    {"type": "string"},
                    {"type": "string", "minLength": least, "maxLength": least + chance.randint(0, 9)},
                ]
            )
        case "integer":
            least = chance.randint(-1000, 1000)
            return chance.choice(
                [
                    {"type": "integer"},
                    {"type": "integer", "minimum": least, "maximum": least + chance.randint(0, 500)},
                ]
            )
        case "number":
            return chance.choice(
                [{"type": "number"}, {"type": "number", "minimum": -1.5, "exclusiveMaximum": 2.5}]
            )
        case "enum":
            values: list[Any] = [
                chance.choice([1, "red", None, True, 'a"b', 2.5, {"x": [1]}, []])
                for _ in range(chance.randint(1, 4))
            ]
            return {"enum": values}
        case "const":
            return {"const": chance.choice(["fixed", 7, None, {"a": 1}, [1, "b"]])}
        case "pattern":
            return {"type": "string", "pattern": chance.choice(PATTERNS)}
        case "format":
            return {"type": "string", "format": chance.choice(FORMATS)}
        case "object":
            names = chance.sample(WORDS, chance.randint(0, 5))
            schema: dict[str, Any] = {
                "type": "object",
                "properties": {name: draw_schema(chance, below) for name in names},
                "required": [name for name in names if chance.random() < 0.6],
            }
            if chance.random() < 0.7:
                schema["additionalProperties"] = chance.choice([False, {"type": "integer"}])
            return schema
        case "array":
            least = chance.randint(0, 3)
            return {
                "type": "array",
                "items": draw_schema(chance, below),
                **chance.choice([{}, {"minItems": least, "maxItems": least + chance.randint(0, 3)}]),
            }
        case "tuple":
            first = [draw_schema(chance, below) for _ in range(chance.randint(1, 3))]
            return {"type": "array", "prefixItems": first, "items": False, "minItems": len(first)}
        case "anyOf":
            return {"anyOf": [draw_schema(chance, below) for _ in range(chance.randint(1, 3))]}
        case "map":
            return {"type": "object", "additionalProperties": draw_schema(chance, below), "maxProperties": 3}
        case "ref":
            return (
                {
                    "$defs": {
                        "node": {
                            "type": "object",
                            "properties": {"next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}},
                            "required": ["next"],
                            "additionalProperties": False,
                        }
                    },
                    "$ref": "#/$defs/node",
                }
                if depth == 3
                else {"type": "boolean"}
            )
        case _:
            return {"type": kind}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


_STRING = {"type": "string"}

# As their documentation has them, with what does not matter left out.
REAL: dict[str, dict[str, Any]] = {
    "weather tool": _object(
        ["location", "unit"],
        location={"type": "string", "description": "City and state, e.g. San Francisco, CA"},
        unit={"type": "string", "enum": ["celsius", "fahrenheit"]},
    ),
    "OpenAI's maths tutor": _object(
        ["steps", "final_answer"],
        steps={
            "type": "array",
            "items": _object(["explanation", "output"], explanation=_STRING, output=_STRING),
        },
        final_answer=_STRING,
    ),
    "OpenAI's user interface": {
        "$ref": "#/$defs/element",
        "$defs": {
            "element": _object(
                ["type", "label", "children", "attributes"],
                type={"type": "string", "enum": ["div", "button", "header", "section", "field", "form"]},
                label=_STRING,
                children={"type": "array", "items": {"$ref": "#/$defs/element"}},
                attributes={
                    "type": "array",
                    "items": _object(["name", "value"], name=_STRING, value=_STRING),
                },
            )
        },
    },
    "GitHub's issue": _object(
        ["title"],
        title=_STRING,
        body={"type": ["string", "null"]},
        labels={
            "type": "array",
            "items": {"anyOf": [_STRING, _object(["name"], name=_STRING, color=_STRING)]},
        },
        milestone={"type": ["integer", "null"]},
        assignees={"type": "array", "items": _STRING},
    ),
    "npm's package.json": {
        "type": "object",
        "properties": {
            "name": {
                "type": "string",
                "maxLength": 214,
                "pattern": r"^(?:@[a-z0-9-*~][a-z0-9-*._~]*/)?[a-z0-9-~][a-z0-9-._~]*$",
            },
            "version": {"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
            "private": {"type": "boolean"},
            "scripts": {"type": "object", "additionalProperties": _STRING},
        },
        "required": ["name", "version"],
        "additionalProperties": False,
    },
    "GeoJSON's point": _object(
        ["type", "coordinates"],
        type={"const": "Point"},
        coordinates={"type": "array", "minItems": 2, "maxItems": 3, "items": {"type": "number"}},
    ),
    "Slack's message": _object(
        ["channel"],
        channel={"type": "string", "pattern": "^[CGD][A-Z0-9]{8,10}$"},
        text=_STRING,
        blocks={
            "type": "array",
            "maxItems": 50,
            "items": {
                "anyOf": [
                    _object(["type"], type={"const": "divider"}),
                    _object(
                        ["type", "text"],
                        type={"const": "header"},
                        text=_object(
                            ["type", "text"],
                            type={"const": "plain_text"},
                            text={"type": "string", "minLength": 1, "maxLength": 150},
                        ),
                    ),
                ]
            },
        },
    ),
    "Stripe's charge": _object(
        ["amount", "currency"],
        amount={"type": "integer", "minimum": 50, "maximum": 99999999},
        currency={"type": "string", "enum": ["eur", "usd", "gbp"]},
        metadata={"type": "object", "additionalProperties": {"type": "string", "maxLength": 500}},
    ),
    "OpenAPI's contact": _object(
        [], name=_STRING, url={"type": "string", "format": "uri"}, email={"type": "string", "format": "email"}
    ),
    "a pydantic model": {
        "title": "Order",
        "type": "object",
        "$defs": {
            "Line": {
                "title": "Line",
                "type": "object",
                "properties": {
                    "sku": {"title": "Sku", "type": "string"},
                    "quantity": {"default": 1, "exclusiveMinimum": 0, "title": "Quantity", "type": "integer"},
                },
                "required": ["sku"],
            }
        },
        "properties": {
            "id": {"format": "uuid", "title": "Id", "type": "string"},
            "placed": {"format": "date-time", "title": "Placed", "type": "string"},
            "lines": {"items": {"$ref": "#/$defs/Line"}, "title": "Lines", "type": "array"},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None, "title": "Note"},
        },
        "required": ["id", "placed", "lines"],
    },
}
