from typing import Any

import pytest

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import JsonObjectFormat, Message, TextFormat
from mlxsup.protocol.worker_link import Generate, Sampling
from mlxsup.worker.engine.outputs.choice import chosen_tools, has_room_to_think
from tests.unit.outputs.answers import TOOLS

GREEDY = Sampling(
    temperature=0,
    top_p=1,
    top_k=0,
    min_p=0,
    repetition_penalty=1,
    presence_penalty=0,
    frequency_penalty=0,
    seed=0,
)


HI = [Message(role="user", content="hi")]


def request(**fields: Any) -> Generate:
    return Generate(**{"max_tokens": 1, "sampling": GREEDY, "messages": HI, "tools": TOOLS, **fields})


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


@pytest.mark.parametrize(
    ("choice", "shown", "allowed", "required"),
    [
        (None, TOOLS, TOOLS, False),
        ("auto", TOOLS, TOOLS, False),
        ("none", [], [], False),
        ("required", TOOLS, TOOLS, True),
        (named("g"), TOOLS, TOOLS[1:], True),
    ],
)
def test_a_choice_says_what_is_shown_and_what_may_be_called(
    choice: Any, shown: list[Any], allowed: list[Any], required: bool
) -> None:
    chosen = chosen_tools(request(tool_choice=choice))

    assert (chosen.shown, chosen.allowed, chosen.required) == (shown, allowed, required)


@pytest.mark.parametrize(
    "choice", ["any", named("nobody"), {"type": "function"}, {"function": {"name": "f"}}]
)
def test_a_choice_of_what_there_is_not_is_refused(choice: Any) -> None:
    with pytest.raises(RpcError) as refused:
        chosen_tools(request(tool_choice=choice))

    assert (refused.value.kind, refused.value.data.path) == (ErrorKind.INVALID_PARAMS, "$.tool_choice")


def test_without_tools_none_can_be_required() -> None:
    with pytest.raises(RpcError, match="tool_choice"):
        chosen_tools(request(tools=[], tool_choice="required"))


def test_a_grammar_leaves_no_room_to_think() -> None:
    assert has_room_to_think(request())
    assert has_room_to_think(request(format=TextFormat()))
    assert not has_room_to_think(request(format=JsonObjectFormat()))
    assert not has_room_to_think(request(tool_choice="required"))


def test_a_prompt_of_the_clients_own_takes_no_tools() -> None:
    with pytest.raises(RpcError) as refused:
        chosen_tools(request(messages=None, prompt="x"))

    assert (refused.value.kind, refused.value.data.path) == (ErrorKind.UNSUPPORTED, "$.tools")
    assert chosen_tools(request(messages=None, prompt="x", tool_choice="none")).shown == []
    assert chosen_tools(request(messages=None, prompt="x", tools=[])).shown == []


def test_tools_and_a_format_do_not_go_together() -> None:
    with pytest.raises(RpcError) as refused:
        chosen_tools(request(format=JsonObjectFormat()))

    assert (refused.value.kind, refused.value.data.path) == (ErrorKind.UNSUPPORTED, "$.tools")
    assert chosen_tools(request(format=JsonObjectFormat(), tool_choice="none")).shown == []
    assert chosen_tools(request(format=TextFormat())).shown == TOOLS
