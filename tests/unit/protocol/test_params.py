from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import ChatParams, GenerateParams
from mlxsup.protocol.methods import METHODS
from mlxsup.protocol.params import decode_params, positional_names
from mlxsup.protocol.service import LoadParams, NoParams, TokenizeParams


class Inner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    size: int


class Sample(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """As the methods' own: optional ones may stand before required ones."""

    limit: Annotated[int, Meta(ge=1)] | None = None
    name: str
    inners: list[Inner] = []


def refusal(params: bytes, params_type: type[Any] = Sample) -> RpcError:
    with pytest.raises(RpcError) as caught:
        decode_params(params, params_type)
    assert caught.value.kind is ErrorKind.INVALID_PARAMS
    assert not caught.value.data.retriable
    return caught.value


def test_absent_params_are_an_empty_object() -> None:
    assert decode_params(None, NoParams) == NoParams()
    assert refusal(b"{}").data.path == refusal(b"[]").data.path == "$.name"


@pytest.mark.parametrize(
    ("params", "path", "words"),
    [
        (b"{}", "$.name", "missing param `$.name`"),
        (b'{"name": 1}', "$.name", "cannot use `$.name`: Expected `str`, got `int`"),
        (b'{"name": "x", "limit": 0}', "$.limit", "cannot use `$.limit`: Expected `int` >= 1"),
        (
            b'{"name": "x", "inners": [{"size": 1}, {}]}',
            "$.inners[1].size",
            "missing param `$.inners[1].size`",
        ),
        (
            b'{"name": "x", "inners": [{"size": 1, "sise": 2}]}',
            "$.inners[0].sise",
            "unknown param `$.inners[0].sise`",
        ),
        (b'{"name": "x", "inners": 3}', "$.inners", "cannot use `$.inners`: Expected `array`, got `int`"),
        (b'{"nam": "x"}', "$.nam", "unknown param `$.nam`; did you mean `name`?"),
        (b'{"zzz": "x"}', "$.zzz", "unknown param `$.zzz`; known are name, limit, inners"),
        (b'["x", 0]', "$.limit", "cannot use `$.limit`: Expected `int` >= 1"),
        (b'["x", 1, [], 4]', "$[3]", "cannot take 4 positional params: there are 3 (name, limit, inners)"),
    ],
    ids=lambda value: value.decode() if isinstance(value, bytes) else "",
)
def test_a_fault_is_named_by_its_path_and_said_in_words(params: bytes, path: str, words: str) -> None:
    error = refusal(params)
    assert (error.data.path, error.message) == (path, words)


def test_a_method_without_params_says_so() -> None:
    assert refusal(b'{"a": 1}', NoParams).message == "unknown param `$.a`; this method takes none"
    assert refusal(b"[1]", NoParams).message == "cannot take 1 positional params: there are 0 (none)"


def test_an_array_gives_the_required_params_first() -> None:
    assert decode_params(b'["x", 2]', Sample) == Sample(name="x", limit=2)
    assert decode_params(b'["m", "text"]', TokenizeParams) == TokenizeParams(model="m", text="text")
    assert decode_params(b'["m", true]', LoadParams) == LoadParams(model="m", pin=True)


def test_a_chat_can_be_asked_for_by_position() -> None:
    chat = decode_params(b'["m", [{"role": "user", "content": "hi"}], 5]', ChatParams)
    assert (chat.model, chat.messages[0].content, chat.max_tokens) == ("m", "hi", 5)


@pytest.mark.parametrize("method", METHODS)
def test_positions_hold_every_param_once_and_no_required_one_behind_an_optional_one(method: str) -> None:
    fields = {field.encode_name: field for field in msgspec.structs.fields(METHODS[method].params)}
    names = positional_names(METHODS[method].params)
    assert sorted(names) == sorted(fields)
    required = [fields[name].required for name in names]
    assert required == sorted(required, reverse=True)


@given(
    st.text(),
    st.none() | st.integers(1, 2**60),
    st.lists(st.builds(Inner, size=st.integers(0, 9)), max_size=3),
)
def test_by_name_and_by_position_mean_the_same(name: str, limit: int | None, inners: list[Inner]) -> None:
    sample = Sample(name=name, limit=limit, inners=inners)
    by_position = msgspec.json.encode([name, limit, inners])
    assert decode_params(msgspec.json.encode(sample), Sample) == decode_params(by_position, Sample) == sample


@given(st.text(min_size=1).filter(lambda name: name not in Sample.__struct_fields__))
def test_an_unknown_param_is_never_passed_over_whatever_it_is_called(name: str) -> None:
    error = refusal(msgspec.json.encode({"name": "x", name: 1}))
    assert error.data.path is not None
    assert error.message.startswith("unknown param")


@pytest.mark.parametrize("params_type", [ChatParams, GenerateParams])
@pytest.mark.parametrize(
    "params",
    [
        b'{"%b": 1}' % (b"x" * 8_000_000),
        b'{"priority": "%b"}' % (b"x" * 8_000_000),
        b'{"model": "%b"}' % (b"x" * 8_000_000),
    ],
    ids=["name", "choice", "text"],
)
def test_a_client_does_not_get_its_own_megabytes_back(params: bytes, params_type: type[Any]) -> None:
    error = refusal(params, params_type)
    assert len(error.message) + len(error.data.path or "") < 1500


def test_a_number_that_no_float_holds_is_a_bad_param() -> None:
    assert refusal(b'{"name": "x", "limit": 1e999}').data.path == "$.limit"


@pytest.mark.parametrize("params_type", [Sample, ChatParams])
def test_nesting_beyond_python_is_a_bad_param(params_type: type[Any]) -> None:
    deep = b"[" * 50_000 + b"]" * 50_000
    assert refusal(b'{"x": ' + deep + b"}", params_type).kind is ErrorKind.INVALID_PARAMS
