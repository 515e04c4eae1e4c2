"""Each parameter of text generation at its bounds, just inside and just outside."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import ChatParams, GenerateParams, GenerationParams
from mlxsup.protocol.params import decode_params

DAY_MS = 24 * 3600 * 1000
TOOL = {"type": "function", "function": {"name": "f"}}
WHOLE_TOOL = {
    "type": "function",
    "function": {"name": "aZ0_.-", "description": "", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}


def _tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": function}


INTEGERS = {
    "max_tokens": (1, 1 << 24),
    "top_k": (0, 1 << 20),
    "seed": (-(2**53 - 1), 2**53 - 1),
    "logprobs": (0, 20),
    "deadline_ms": (1, 7 * DAY_MS),
}
FLOATS = {
    "repetition_penalty": (0.01, 10.0),
    "temperature": (0.0, 5.0),
    "min_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}
ABOVE_ZERO = {"top_p": 1.0}
BOOLEANS = {"stream", "resume"}
# What is taken, and what is not, of everything that is no plain number.
OTHERS: dict[str, tuple[list[Any], list[Any]]] = {
    "model": (["m", "x" * 256], ["", "x" * 257, None, 1]),
    "stop": (["a", ["a"], [], ["a"] * 16, "x" * 1024], ["", [""], ["a"] * 17, "x" * 1025, [1], 1]),
    "logit_bias": (
        [{}, {"0": 1.5}, {"5": -100.0, "2147483647": 100.0}, {str(n): 0.0 for n in range(1024)}],
        [
            {"-1": 1},
            {"2147483648": 1},
            {"a": 1},
            {"1.0": 1},
            {"1": 100.1},
            {"1": -101},
            {"1": "1"},
            {str(n): 0 for n in range(1025)},
            [],
        ],
    ),
    "response_format": (
        [
            {"type": "text"},
            {"type": "json_object"},
            {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}},
            {"type": "json_schema", "json_schema": {"name": "n" * 128, "schema": {}}},
            {"type": "regex", "pattern": "a*"},
            {"type": "choice", "choices": ["a"]},
        ],
        [
            {},
            {"type": "xml"},
            {"type": "text", "extra": 1},
            {"type": "json_schema"},
            {"type": "json_schema", "json_schema": {"name": "n"}},
            {"type": "json_schema", "json_schema": {"name": "n" * 129, "schema": {}}},
            {"type": "regex", "pattern": ""},
            {"type": "regex", "pattern": "x" * 65537},
            {"type": "choice", "choices": []},
            {"type": "choice", "choices": ["a"] * 4097},
            "text",
        ],
    ),
    "tools": (
        [[], [TOOL], [WHOLE_TOOL], [TOOL] * 128, [_tool(name="x" * 64)]],
        [
            [TOOL] * 129,
            [1],
            TOOL,
            [{}],
            [{"type": "function"}],
            [{"type": "retrieval", "function": {"name": "f"}}],
            [{**TOOL, "extra": 1}],
            [_tool()],
            [_tool(name="")],
            [_tool(name="x" * 65)],
            [_tool(name="a b")],
            [_tool(name="a\n")],
            [_tool(name="f", strict=True)],
            [_tool(name="f", description=1)],
            [_tool(name="f", parameters=[])],
        ],
    ),
    "tool_choice": (
        ["auto", "none", "required", TOOL],
        [1, True, ["auto"], "any", {}, WHOLE_TOOL, {"type": "function"}, {"type": "function", "name": "f"}],
    ),
    "adapter": (["a", "x" * 128], ["", "x" * 129, 1]),
    "priority": (["interactive", "high", "normal", "background"], ["urgent", "", "NORMAL", 1]),
    "client": (["a", "x" * 128], ["", "x" * 129, 1]),
    "idempotency_key": (["a", "x" * 128], ["", "x" * 129, 1]),
    "messages": (
        [
            [{"role": role, "content": "a"} for role in ("system", "developer", "user", "assistant", "tool")],
            [{"role": "user", "content": [{"type": "text", "text": "a"}, IMAGE]}],
            [{"role": "assistant", "content": None, "tool_calls": [CALL] * 128}],
            [{"role": "tool", "tool_call_id": "x" * 128, "name": "x" * 128}],
            [{"role": "user"}] * 4096,
        ],
        [
            [],
            [{"role": "user"}] * 4097,
            [{"role": "robot", "content": "a"}],
            [{"content": "a"}],
            [{"role": "user", "content": 1}],
            [{"role": "user", "content": [{"type": "audio"}]}],
            [{"role": "user", "content": [{"type": "text", "text": "a"}] * 1025}],
            [{"role": "user", "name": "x" * 129}],
            [{"role": "user", "tool_calls": [CALL] * 129}],
            [{"role": "assistant", "tool_calls": [TOOL]}],
            [{"role": "assistant", "tool_calls": [{**CALL, "id": ""}]}],
            [{"role": "assistant", "tool_calls": [{**CALL, "id": 1}]}],
            [{"role": "assistant", "tool_calls": [{**CALL, "type": "code"}]}],
            [{"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": {}}}]}],
            [{"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "", "arguments": "{}"}}]}],
            [{"role": "user", "unknown": 1}],
        ],
    ),
    "prompt": (["", "a"], [1, ["a"]]),
    "prompt_tokens": ([[0], [2**31 - 1]], [[], [-1], [2**31], [1.5], ["1"], 1]),
}
NULLABLE = [*INTEGERS, *FLOATS, *ABOVE_ZERO, *(set(OTHERS) - {"model", "messages"})]
NUMBERS = [*INTEGERS, *FLOATS, *ABOVE_ZERO]


def decode(name: str, value: Any) -> GenerationParams:
    return decode_text(name, msgspec.json.encode(value))


def decode_text(name: str, value: bytes) -> GenerationParams:
    if name in ("prompt", "prompt_tokens"):
        given = {"model": b'"m"', name: value}
        return decode_params(_object(given), GenerateParams)
    return decode_params(
        _object({"model": b'"m"', "messages": b'[{"role":"user","content":"a"}]', name: value}), ChatParams
    )


def _object(members: dict[str, bytes]) -> bytes:
    return b"{" + b",".join(b'"%b":%b' % (name.encode(), value) for name, value in members.items()) + b"}"


def is_taken(name: str, value: Any) -> bool:
    try:
        params = decode(name, value)
    except RpcError as error:
        if (error.kind, error.data.path) != (ErrorKind.INVALID_PARAMS, f"$.{name}"):
            raise
        return False
    return bool(getattr(params, name) == value)


def test_every_parameter_stands_in_one_of_these_tables() -> None:
    tables = [*INTEGERS, *FLOATS, *ABOVE_ZERO, *BOOLEANS, *OTHERS]
    fields = {*ChatParams.__struct_fields__, *GenerateParams.__struct_fields__}
    assert sorted(tables) == sorted(fields)


@pytest.mark.parametrize("name", INTEGERS)
def test_an_integer_is_taken_to_its_bounds_and_not_beyond(name: str) -> None:
    low, high = INTEGERS[name]
    assert [is_taken(name, value) for value in (low - 1, low, high, high + 1)] == [False, True, True, False]


@given(st.sampled_from(sorted(INTEGERS)), st.integers())
def test_an_integer_is_taken_if_it_is_within_its_bounds(name: str, value: int) -> None:
    low, high = INTEGERS[name]
    assert is_taken(name, value) == (low <= value <= high)


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(st.sampled_from(sorted(FLOATS)), finite | st.floats(-6, 6))
def test_a_float_is_taken_if_it_is_within_its_bounds(name: str, value: float) -> None:
    low, high = FLOATS[name]
    assert is_taken(name, value) == (low <= value <= high)


@pytest.mark.parametrize("name", FLOATS)
def test_a_float_is_taken_at_its_very_bounds(name: str) -> None:
    low, high = FLOATS[name]
    assert [is_taken(name, value) for value in (low - 1e-9, low, high, high + 1e-9)] == [
        False,
        True,
        True,
        False,
    ]


@given(st.sampled_from(sorted(ABOVE_ZERO)), finite | st.floats(-1, 11) | st.just(0.0) | st.just(5e-324))
def test_what_must_be_above_zero_is_taken_above_it_to_its_upper_bound(name: str, value: float) -> None:
    assert is_taken(name, value) == (0 < value <= ABOVE_ZERO[name])


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    "value", ["1e999", "-1e999", "9" * 5000, '"1"', "true", "[1]", "{}"], ids=lambda text: text[:5]
)
def test_no_parameter_takes_an_infinite_number_or_what_is_no_number(name: str, value: str) -> None:
    with pytest.raises(RpcError) as caught:
        decode_text(name, value.encode())
    assert caught.value.data.path == f"$.{name}"


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [b"NaN", b"Infinity", b"-Infinity"])
def test_a_number_that_json_does_not_have_is_never_taken(name: str, value: bytes) -> None:
    with pytest.raises(RpcError, match="malformed"):
        decode_text(name, value)


@pytest.mark.parametrize("name", INTEGERS)
def test_an_integer_with_a_fraction_is_not_rounded(name: str) -> None:
    assert not is_taken(name, 1.5)


@pytest.mark.parametrize("name", sorted(BOOLEANS))
def test_a_switch_is_on_or_off_and_nothing_between(name: str) -> None:
    assert [is_taken(name, value) for value in (True, False, None, 1, "true")] == [
        True,
        True,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, (good, _) in OTHERS.items() for value in good],
    ids=lambda value: str(value)[:40],
)
def test_what_the_contract_allows_is_taken(name: str, value: Any) -> None:
    if name == "response_format":
        assert decode(name, value).response_format is not None
    else:
        decoded = msgspec.to_builtins(getattr(decode(name, value), name), str_keys=True)
        assert msgspec.json.encode(decoded, order="sorted") == msgspec.json.encode(
            _without_nulls(value), order="sorted"
        )


def _without_nulls(value: Any) -> Any:
    """Messages leave out what is null."""
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    if isinstance(value, dict) and "role" in value:
        return {key: item for key, item in value.items() if item is not None}
    return value


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, (_, bad) in OTHERS.items() for value in bad],
    ids=lambda value: str(value)[:40],
)
def test_what_the_contract_does_not_allow_is_refused_by_its_path(name: str, value: Any) -> None:
    with pytest.raises(RpcError) as caught:
        decode(name, value)
    assert (caught.value.data.path or "").startswith(f"$.{name}")


@pytest.mark.parametrize("name", sorted(NULLABLE))
def test_null_is_the_same_as_absent(name: str) -> None:
    assert getattr(decode(name, None), name) is None


@pytest.mark.parametrize(("stop", "strings"), [(None, ()), ("a", ("a",)), (["a", "b"], ("a", "b")), ([], ())])
def test_stop_strings_are_a_tuple_however_they_were_given(stop: Any, strings: tuple[str, ...]) -> None:
    assert decode("stop", stop).stop_strings == strings
