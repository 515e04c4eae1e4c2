"""What a client asks for reaches the worker as it was asked, and what can't be meant is refused by its path."""

from typing import Any

import msgspec
import pytest

from mlxsup.config.schema import Generation
from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import ChatParams, GenerateParams
from mlxsup.protocol.worker_link import Generate
from mlxsup.supervisor.generation.checks import LOGPROBS_MAX
from mlxsup.supervisor.generation.translate import make_order

CHAT = {"model": "m", "messages": [{"role": "user", "content": "a"}]}
FORMAT = {"type": "json_schema", "json_schema": {"schema": {"type": "object", "properties": {}}}}


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


def choice(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def order(**params: Any) -> Generate:
    given: ChatParams | GenerateParams
    if "prompt" in params:
        given = msgspec.convert({"model": "m", **params}, GenerateParams)
    else:
        given = msgspec.convert({**CHAT, **params}, ChatParams)
    return make_order(given, Generation(), random_seed=1, now_unix_s=2.0)


def refusal(**params: Any) -> tuple[str, str | None]:
    with pytest.raises(RpcError) as caught:
        order(**params)
    error = caught.value
    assert (error.data.path or "") in error.message
    return error.kind.value, error.data.path


def calling(arguments: str = "{}", role: str = "assistant") -> list[dict[str, Any]]:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return [{"role": "user", "content": "a"}, {"role": role, "tool_calls": [{**call, "id": "0"}, call]}]


def test_tools_a_choice_logprobs_and_an_adapter_reach_the_worker_as_they_are() -> None:
    parameters = {"type": "object", "properties": {"b": {"type": "string"}, "a": {}}}
    tools = [tool("f", description="d", parameters=parameters), tool("g")]
    given = order(tools=tools, tool_choice=choice("g"), logprobs=5, adapter="german")

    assert given.tools == tools
    assert list(given.tools[0]["function"]["parameters"]["properties"]) == ["b", "a"]
    assert given.tool_choice == choice("g")
    assert (given.logprobs, given.adapter) == (5, "german")
    # What crosses the pipe is the same.
    assert msgspec.json.decode(msgspec.json.encode(given), type=Generate) == given


@pytest.mark.parametrize("kind", [CHAT, {"prompt": "a"}], ids=["chat", "generate"])
def test_a_format_reaches_the_worker_and_plain_text_is_none(kind: dict[str, Any]) -> None:
    params = {name: value for name, value in kind.items() if name == "prompt"}
    assert msgspec.to_builtins(order(**params, response_format=FORMAT).format)["json_schema"]["schema"] == {
        "type": "object",
        "properties": {},
    }
    assert order(**params, response_format={"type": "text"}).format is None
    assert order(**params).format is None


@pytest.mark.parametrize("chosen", [None, "none", "auto"])
@pytest.mark.parametrize("tools", [None, [], [tool("f")]], ids=str)
def test_nobody_has_to_choose_a_tool(chosen: str | None, tools: list[Any] | None) -> None:
    given = order(tools=tools, tool_choice=chosen)
    assert (given.tools, given.tool_choice) == (tools or [], chosen)


@pytest.mark.parametrize(
    ("params", "path"),
    [
        ({"tools": [tool("f"), tool("g"), tool("f")]}, "$.tools[2].function.name"),
        ({"tool_choice": "required"}, "$.tool_choice"),
        ({"tool_choice": "required", "tools": []}, "$.tool_choice"),
        ({"tool_choice": choice("f")}, "$.tool_choice.function.name"),
        ({"tool_choice": choice("F"), "tools": [tool("f")]}, "$.tool_choice.function.name"),
        (
            {"tool_choice": "required", "tools": [tool("f")], "response_format": FORMAT},
            "$.tool_choice",
        ),
        (
            {"tool_choice": choice("f"), "tools": [tool("f")], "response_format": {"type": "json_object"}},
            "$.tool_choice",
        ),
        ({"messages": calling("[1]")}, "$.messages[1].tool_calls[0].function.arguments"),
        ({"messages": calling("{'a': 1}")}, "$.messages[1].tool_calls[0].function.arguments"),
        ({"messages": calling('{"a":' * 100_000)}, "$.messages[1].tool_calls[0].function.arguments"),
        ({"messages": calling(role="user")}, "$.messages[1].tool_calls"),
        (
            {"messages": [{"role": "user", "content": "a", "tool_call_id": "1"}]},
            "$.messages[0].tool_call_id",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value)[:60],
)
def test_what_can_not_be_meant_is_refused_by_its_path(params: dict[str, Any], path: str) -> None:
    assert refusal(**params) == ("invalid_params", path)


@pytest.mark.parametrize("arguments", ["{}", "", '{"a": {"b": [1, null]}}', ' {"é": "\\u00e9"} '])
def test_a_conversation_with_calls_and_their_results_is_taken(arguments: str) -> None:
    messages = [*calling(arguments), {"role": "tool", "content": "1", "tool_call_id": "1"}]
    given = order(messages=messages)
    assert given.messages is not None
    assert msgspec.to_builtins(given.messages[1].tool_calls)[0]["function"]["arguments"] == arguments


def test_a_required_call_goes_with_plain_text() -> None:
    given = order(tools=[tool("f")], tool_choice="required", response_format={"type": "text"})
    assert (given.tool_choice, given.format) == ("required", None)


@pytest.mark.parametrize("top", [0, 1, 20])
def test_an_answer_has_so_many_logprobs_and_one_that_could_have_more_is_refused(top: int) -> None:
    most = LOGPROBS_MAX // (1 + top)
    assert order(logprobs=top, max_tokens=most).max_tokens == most
    assert refusal(logprobs=top, max_tokens=most + 1) == ("limit_exceeded", "$.logprobs")
    assert order(max_tokens=most + 1).logprobs is None


def test_exactly_one_kind_of_prompt_is_given() -> None:
    assert refusal(prompt="a", prompt_tokens=[1]) == (ErrorKind.INVALID_PARAMS.value, "$.prompt")
