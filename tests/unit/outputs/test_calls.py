import json

import pytest

from mlxsup.protocol.generation import ToolCall
from mlxsup.worker.engine.outputs.calls import CALL_ID_CHARS_MAX, CALLS_MAX, CallReader
from tests.unit.outputs.answers import TOOLS, reader, said, split


def calls(body: str) -> list[ToolCall]:
    found = reader().read(body)
    assert found is not None
    return found


def test_ids_are_those_of_prompt_seed_and_number() -> None:
    two = '[{"name": "f"}, {"name": "f"}]'

    def ids(seed: int, prompt_tokens: list[int]) -> list[str]:
        found = reader(seed=seed, prompt_tokens=prompt_tokens).read(two)
        return [call.id for call in found or []]

    same = ids(7, [1, 2, 3])
    assert same == ids(7, [1, 2, 3])
    assert len({*same, *ids(8, [1, 2, 3]), *ids(7, [1, 2, 4])}) == 6


def test_ids_are_such_as_mistrals_templates_take() -> None:
    (call,) = calls('{"name": "f"}')

    assert len(call.id) == 9
    assert call.id.isascii()
    assert call.id.isalnum()


def test_an_id_of_the_models_own_is_kept_once() -> None:
    first, second = calls('[{"name": "f", "id": "functions.f:0"}, {"name": "f", "id": "functions.f:0"}]')

    assert first.id == "functions.f:0"
    assert second.id != first.id


@pytest.mark.parametrize("own", ["", 3, None, "x" * (CALL_ID_CHARS_MAX + 1), "a\nb", ["x"]])
def test_an_id_that_a_message_can_not_bring_back_is_replaced(own: object) -> None:
    (call,) = calls(json.dumps({"name": "f", "id": own}))

    assert len(call.id) == 9


def test_arguments_are_the_text_of_an_object_however_they_were_said() -> None:
    ways = ['"arguments": {"a": "ä"}', '"arguments": "{\\"a\\": \\"ä\\"}"', '"parameters": {"a": "ä"}']
    for way in ways:
        (call,) = calls('{"name": "f", ' + way + "}")

        assert call.function.arguments == '{"a": "ä"}'


def test_half_a_surrogate_pair_in_an_argument_can_be_sent() -> None:
    (call,) = calls('{"name": "f", "arguments": {"a": "\\ud800"}}')

    assert call.function.arguments.encode() == b'{"a": "\\ud800"}'


def test_an_answer_has_no_more_calls_than_a_message_takes_back() -> None:
    one = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    piece = split([one] * (CALLS_MAX + 1))

    assert len(said(piece)) == CALLS_MAX
    assert piece.text == one


@pytest.mark.parametrize("failure", [ValueError, KeyError, AttributeError, RecursionError, MemoryError])
def test_a_parser_may_fail_in_any_way(failure: type[Exception]) -> None:
    def parse(text: str, tools: object) -> object:
        raise failure

    assert CallReader(parse, TOOLS, seed=0, prompt_tokens=[]).read("x") is None


@pytest.mark.parametrize("value", [{1, 2}, b"x", 1j, ...])
def test_arguments_that_json_does_not_know_are_no_call(value: object) -> None:
    def parse(text: str, tools: object) -> object:
        return {"name": "f", "arguments": {"a": value}}

    assert CallReader(parse, TOOLS, seed=0, prompt_tokens=[]).read("x") is None


def test_a_parser_finds_the_parameters_of_a_tool_that_has_none() -> None:
    def parse(text: str, tools: list[dict[str, dict[str, object]]]) -> object:
        assert tools[0]["function"]["parameters"] == {"type": "object"}
        return {"name": "h", "arguments": {}}

    tools = [{"type": "function", "function": {"name": "h"}}]
    assert CallReader(parse, tools, seed=0, prompt_tokens=[]).read("x")


def test_what_would_take_a_parser_too_long_is_not_shown_to_it() -> None:
    def parse(text: str, tools: object) -> object:
        return {"name": "f"}

    once = "call:f" + "x" * 10_000
    assert CallReader(parse, TOOLS, seed=0, prompt_tokens=[]).read(once * 20)

    parse.__module__ = "mlx_lm.tool_parsers.gemma4"
    calls = CallReader(parse, TOOLS, seed=0, prompt_tokens=[])
    assert calls.read(once)
    assert calls.read(once * 20) is None
    assert calls.read("x" * len(once) * 20)
