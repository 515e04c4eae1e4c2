import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from mlxsup.protocol.errors import ERROR_CODES, Death, ErrorKind, RpcError
from mlxsup.protocol.methods import METHODS, NOTIFICATIONS_FROM_CLIENT, NOTIFICATIONS_FROM_SERVER
from mlxsup.protocol.openrpc import document
from mlxsup.protocol.params import decode_params

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema comes with outlines")

DOCUMENT: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(document("1.2.3")))
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
BY_NAME: dict[str, Any] = {method["name"]: method for method in DOCUMENT["methods"]}

MESSAGES = [
    {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    {"role": "assistant", "content": "yes"},
    {
        "role": "assistant",
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    },
    {"role": "tool", "content": "1", "tool_call_id": "1"},
]
TOOLS = {
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
}
SAMPLING = {
    "max_tokens": 5,
    "temperature": 0.5,
    "stop": ["a"],
    "logit_bias": {"5": 1.5},
    "seed": -1,
    "stream": True,
}
FORMATS = {
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
}
SAMPLES: dict[str, dict[str, Any]] = {
    "server/info": {},
    "server/health": {},
    "server/stats": {},
    "server/subscribe": {"topics": ["worker"]},
    "server/shutdown": {"drain_ms": 100},
    "rpc.discover": {},
    "model/list": {},
    "model/load": {"model": "m", "pin": True, "options": {"context_tokens_max": 64}},
    "model/unload": {"model": "m", "force": True},
    "model/recycle": {"model": "m"},
    "model/selftest": {"model": "m"},
    "model/forgive": {"model": "m"},
    "model/breaker": {"model": "m", "action": "force_open"},
    "model/pull": {"model": "m"},
    "chat": {"model": "m", "messages": MESSAGES, "priority": "high", **SAMPLING, **FORMATS, **TOOLS},
    "generate": {"model": "m", "prompt": "hi", "response_format": {"type": "choice", "choices": ["a"]}},
    "embed": {"model": "m", "input": ["a", "b"]},
    "tokenize": {"model": "m", "text": "hi"},
    "detokenize": {"model": "m", "tokens": [1, 2]},
    "$/cancelRequest": {"id": "a"},
    "stream/delta": {
        "id": 1,
        "index": 0,
        "text": "x",
        "reasoning": "r",
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        "tokens": [1],
        "logprobs": [
            {"token": 1, "text": "x", "logprob": -0.5, "top": [{"token": 2, "text": "", "logprob": -1}]}
        ],
    },
    "$/progress": {"token": 1, "value": {"phase": "weights"}},
    "event": {"topic": "worker", "model": "m", "what": "ready", "detail": {}},
}


def problems(schema: dict[str, Any], value: Any) -> list[str]:
    """What a JSON Schema validator has against a value; references go to the whole document."""
    validator = jsonschema.Draft202012Validator(DOCUMENT | schema)
    return [error.message for error in validator.iter_errors(value)]


def params_schema(name: str) -> dict[str, Any]:
    """The params of a method as one object, as a generator of clients puts them together."""
    params = BY_NAME[name]["params"]
    return {
        "type": "object",
        "properties": {param["name"]: param["schema"] for param in params},
        "required": [param["name"] for param in params if param["required"]],
        "additionalProperties": False,
    }


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def test_every_method_and_notification_is_described_once() -> None:
    names = [method["name"] for method in DOCUMENT["methods"]]
    assert sorted(names) == sorted([*METHODS, *NOTIFICATIONS_FROM_CLIENT, *NOTIFICATIONS_FROM_SERVER])
    assert sorted(SAMPLES) == sorted(names)


def test_every_reference_leads_somewhere() -> None:
    found = set(references(DOCUMENT))
    assert found
    for reference in found:
        target: Any = DOCUMENT
        for step in reference.removeprefix("#/").split("/"):
            target = target[step]
        assert target


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_schema_is_a_valid_one_of_draft_2020_12(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[name])


@pytest.mark.parametrize("name", BY_NAME)
def test_a_method_has_what_openrpc_asks_of_one(name: str) -> None:
    method = BY_NAME[name]
    assert isinstance(method["summary"], str)
    assert method["paramStructure"] in ("by-name", "by-position", "either")
    for param in method["params"]:
        assert set(param) == {"name", "required", "schema"}
        jsonschema.Draft202012Validator.check_schema(param["schema"])
    required = [param["required"] for param in method["params"]]
    assert required == sorted(required, reverse=True)
    if name in METHODS:
        assert set(method["result"]) == {"name", "schema"}
        jsonschema.Draft202012Validator.check_schema(method["result"]["schema"])
    else:
        assert "result" not in method


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_of_each_method_validates(name: str) -> None:
    assert problems(params_schema(name), SAMPLES[name]) == []


@pytest.mark.parametrize("name", METHODS)
def test_the_same_sample_is_taken_by_the_decoder(name: str) -> None:
    decode_params(msgspec.json.encode(SAMPLES[name]), METHODS[name].params)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_with_one_param_more_validates_nowhere(name: str) -> None:
    assert problems(params_schema(name), SAMPLES[name] | {"surprise": 1})


@pytest.mark.parametrize("name", [name for name in METHODS if SAMPLES[name]])
def test_a_sample_is_taken_by_position_in_the_order_that_the_document_gives(name: str) -> None:
    order = [param["name"] for param in BY_NAME[name]["params"]]
    assert BY_NAME[name]["paramStructure"] == "either"
    sample = SAMPLES[name]
    defaults = {param["name"]: param["schema"].get("default") for param in BY_NAME[name]["params"]}
    count = 1 + max(order.index(given) for given in sample)
    values = [sample.get(param, defaults[param]) for param in order[:count]]
    by_position = decode_params(msgspec.json.encode(values), METHODS[name].params)
    assert by_position == decode_params(msgspec.json.encode(sample), METHODS[name].params)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("chat", {"max_tokens": 0}),
        ("chat", {"temperature": 5.1}),
        ("chat", {"top_p": 0}),
        ("chat", {"stop": ["a"] * 17}),
        ("chat", {"messages": []}),
        ("chat", {"messages": [{"role": "robot"}]}),
        ("chat", {"priority": "urgent"}),
        ("chat", {"response_format": {"type": "xml"}}),
        ("chat", {"logit_bias": {"5": 101}}),
        ("chat", {"tools": [{"type": "function", "function": {"name": "f\n"}}]}),
        ("chat", {"tool_choice": "f"}),
        ("stream/delta", {"logprobs": [{"token": 1}]}),
        ("tokenize", {"text": 1}),
        ("server/shutdown", {"drain_ms": -1}),
    ],
    ids=str,
)
def test_a_value_out_of_bounds_is_out_of_bounds_in_the_document_too(
    name: str, change: dict[str, Any]
) -> None:
    assert problems(params_schema(name), SAMPLES[name] | change)


def test_the_errors_of_a_method_are_components_with_the_codes_of_the_contract() -> None:
    errors = DOCUMENT["components"]["errors"]
    assert {name: error["code"] for name, error in errors.items()} == {
        kind.value: code for kind, code in ERROR_CODES.items()
    }
    for name in METHODS:
        assert {"$ref": "#/components/errors/invalid_params"} in BY_NAME[name]["errors"]


def test_the_data_of_an_error_is_described_and_a_sample_of_it_validates() -> None:
    death = Death(death_class="killed", phase="ready", signal="SIGKILL")
    error = RpcError(
        ErrorKind.WORKER_DIED, "x", retry_after_ms=1, path="$.a", tokens_delivered=2, death=death
    )
    data = msgspec.json.decode(msgspec.json.encode(error.data))
    assert problems({"$ref": "#/components/schemas/ErrorData"}, data) == []
    assert problems({"$ref": "#/components/schemas/ErrorData"}, data | {"kind": "unheard_of"})


def test_the_document_says_who_and_which_version_speaks() -> None:
    assert re.fullmatch(r"1\.\d+\.\d+", DOCUMENT["openrpc"])
    assert (DOCUMENT["info"]["title"], DOCUMENT["info"]["version"]) == ("mlxsup", "1.2.3")
