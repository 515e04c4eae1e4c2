"""What a model is told of tools, and what its answers are made of."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import (
    FinishReason,
    JsonObjectFormat,
    Message,
    PastCall,
    PastFunction,
    ToolCall,
)
from mlxsup.protocol.worker_link import Generate, Sampling
from mlxsup.worker.engine.codec import TextCodec
from mlxsup.worker.engine.interface import Emission
from mlxsup.worker.engine.member import Choice
from mlxsup.worker.engine.outputs.open import open_output
from mlxsup.worker.engine.sequence import Sequence
from tests.mlx.outputs.tokenizers import BEGUN, HERMES, MARKERS, PLAIN, QWEN3, THINKING, UNMARKED, make_codec

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {}}}},
}
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
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich"}}\n</tool_call>'


def chat(**fields: Any) -> Generate:
    return Generate(**{"max_tokens": 1000, "sampling": GREEDY, "messages": HI, "tools": [WEATHER], **fields})


def prompt_of(codec: TextCodec, **options: Any) -> list[int]:
    return codec.encode(codec.render_chat(HI, **options), special=False)


def test_tools_are_shown_by_the_template(tmp_path: Path) -> None:
    codec = make_codec(tmp_path, HERMES)

    assert codec.render_chat(HI, tools=[WEATHER]) == (
        f"<|im_start|>system\n<tools>\n{json.dumps(WEATHER)}\n</tools><|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert codec.render_chat(HI) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_calls_of_earlier_answers_come_back_as_objects(tmp_path: Path) -> None:
    function = PastFunction(name="get_weather", arguments='{"city": "Zürich"}')
    messages = [
        *HI,
        Message(role="assistant", tool_calls=[PastCall(id="a", type="function", function=function)]),
        Message(role="tool", content="rain", tool_call_id="a"),
    ]

    assert (
        make_codec(tmp_path, HERMES)
        .render_chat(messages, tools=[WEATHER])
        .endswith(
            f"<|im_start|>assistant\n\n{CALL}<|im_end|>\n"
            "<|im_start|>user\n<tool_response>\nrain\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
        )
    )


@pytest.mark.parametrize("arguments", ["{", "[]", "3", "nul", "[" * 10_000])
def test_arguments_that_are_no_object_are_refused(tmp_path: Path, arguments: str) -> None:
    call = PastCall(id="a", type="function", function=PastFunction(name="f", arguments=arguments))
    with pytest.raises(RpcError) as refused:
        make_codec(tmp_path, HERMES).render_chat([*HI, Message(role="assistant", tool_calls=[call])])

    assert refused.value.kind is ErrorKind.INVALID_PARAMS
    assert refused.value.data.path == "$.messages[1].tool_calls[0].function.arguments"


@pytest.mark.parametrize(
    ("template", "markers", "reason"),
    [
        (PLAIN, MARKERS, "no parser"),
        (PLAIN, ("<|tool_call_start|>", "<|tool_call_end|>"), "template"),
        (UNMARKED, (), "no parser"),
    ],
)
def test_a_model_that_can_not_call_tools_is_shown_none(
    tmp_path: Path, template: str, markers: tuple[str, ...], reason: str
) -> None:
    codec = make_codec(tmp_path, template, markers)
    with pytest.raises(RpcError, match=reason) as refused:
        codec.render_chat(HI, tools=[WEATHER])

    assert (refused.value.kind, refused.value.data.path) == (ErrorKind.UNSUPPORTED, "$.tools")
    assert codec.render_chat(HI).endswith("hi" if template is UNMARKED else "<|im_start|>assistant\n")


def test_a_template_that_stumbles_over_a_tool_says_so(tmp_path: Path) -> None:
    codec = make_codec(tmp_path, HERMES.replace("tool | tojson", "'' + tool.function.parameters.x"))
    with pytest.raises(RpcError) as refused:
        codec.render_chat(HI, tools=[{"type": "function", "function": {"name": "f", "parameters": {"x": 3}}}])

    assert (refused.value.kind, refused.value.data.path) == (ErrorKind.INVALID_PARAMS, "$.tools")


def emit(codec: TextCodec, request: Generate, prompt: list[int], answer: str) -> list[Emission]:
    """What each token of an answer gives, and its end."""
    tokens = [*codec.encode(answer, special=False), codec.eos_tokens[0]]
    sequence = Sequence(1, request, codec, open_output(request, codec, prompt), 1000)
    assert sequence.replay(request.delivered_tokens) is None
    return [sequence.tell([Choice(1, token)]) for token in tokens[len(request.delivered_tokens) :]]


def text_of(emissions: list[Emission]) -> str:
    return "".join(emission.text for emission in emissions)


def reasoning_of(emissions: list[Emission]) -> str:
    return "".join(emission.reasoning for emission in emissions)


def calls_of(emissions: list[Emission]) -> list[ToolCall]:
    return [call for emission in emissions for call in emission.tool_calls]


def test_reasoning_and_a_call_come_apart_and_say_why_it_ended(tmp_path: Path) -> None:
    codec = make_codec(tmp_path, QWEN3, MARKERS + THINKING)
    emissions = emit(codec, chat(), prompt_of(codec), f"<think>\nhm</think>\n\nI look.{CALL}")
    (call,) = calls_of(emissions)

    assert (reasoning_of(emissions), text_of(emissions)) == ("hm", "I look.")
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "Zürich"}')
    assert emissions[-1].finish is FinishReason.TOOL_CALLS


def test_an_answer_that_is_taken_up_again_goes_on_as_it_began(tmp_path: Path) -> None:
    codec = make_codec(tmp_path, QWEN3, MARKERS + THINKING)
    prompt = prompt_of(codec)
    answer = f"<think>\nhäm</think>\n\nI look.{CALL}{CALL} <tool_call>no</tool_call>"
    tokens = codec.encode(answer, special=False)
    whole = emit(codec, chat(), prompt, answer)
    assert len({call.id for call in calls_of(whole)}) == 2

    for delivered in range(1, len(tokens)):
        before = whole[:delivered]
        request = chat(
            delivered_tokens=tokens[:delivered],
            delivered_chars=len(text_of(before)),
            delivered_reasoning_chars=len(reasoning_of(before)),
            delivered_tool_calls=len(calls_of(before)),
        )
        after = emit(codec, request, prompt, answer)

        assert text_of(before) + text_of(after) == text_of(whole)
        assert reasoning_of(before) + reasoning_of(after) == reasoning_of(whole)
        assert calls_of(before) + calls_of(after) == calls_of(whole)
        assert after[-1].finish is FinishReason.TOOL_CALLS


def test_a_template_that_begins_the_reasoning_leaves_its_end_to_the_answer(tmp_path: Path) -> None:
    codec = make_codec(tmp_path, BEGUN, MARKERS + THINKING)
    emissions = emit(codec, chat(tools=[]), prompt_of(codec), "hm</think>\n\n42")

    assert (reasoning_of(emissions), text_of(emissions)) == ("hm", "42")
    assert emissions[-1].finish is FinishReason.STOP


def test_what_a_user_says_of_markers_begins_no_reasoning(tmp_path: Path) -> None:
    codec = make_codec(tmp_path, HERMES, MARKERS + THINKING)
    messages = [Message(role="user", content="what is <think>\n")]
    request = chat(messages=messages)
    prompt = codec.encode(codec.render_chat(messages), special=False)

    assert text_of(emit(codec, request, prompt, "a marker")) == "a marker"


def test_tools_that_are_not_to_be_called_are_not(tmp_path: Path) -> None:
    codec = make_codec(tmp_path, HERMES)
    emissions = emit(codec, chat(tool_choice="none"), prompt_of(codec), CALL)

    assert (text_of(emissions), calls_of(emissions)) == (CALL, [])
    assert emissions[-1].finish is FinishReason.STOP


def test_only_the_named_tool_can_be_called(tmp_path: Path) -> None:
    codec = make_codec(tmp_path, HERMES)
    other = {"type": "function", "function": {"name": "other"}}
    request = chat(tools=[WEATHER, other], tool_choice=other)
    emissions = emit(codec, request, prompt_of(codec), f'{CALL}<tool_call>{{"name": "other"}}</tool_call>')

    assert [call.function.name for call in calls_of(emissions)] == ["other"]
    assert text_of(emissions) == CALL


def test_where_a_format_binds_the_answer_there_are_no_markers(tmp_path: Path) -> None:
    codec = make_codec(tmp_path, BEGUN, MARKERS + THINKING)
    request = chat(format=JsonObjectFormat(), tools=[])
    said = '{"a": "<think>"}'

    assert text_of(emit(codec, request, prompt_of(codec), said)) == said


def test_a_model_that_need_not_think_is_told_so(tmp_path: Path) -> None:
    codec = make_codec(tmp_path, QWEN3, MARKERS + THINKING)

    assert codec.render_chat(HI).endswith("<|im_start|>assistant\n")
    assert codec.render_chat(HI, thinks=False).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_a_prompt_of_the_clients_own_is_answered_with_plain_text(tmp_path: Path) -> None:
    codec = make_codec(tmp_path, QWEN3, MARKERS + THINKING)
    request = chat(messages=None, prompt="<think>", tools=[])

    assert open_output(request, codec, codec.encode("<think>", special=True)) is None


def test_a_model_without_markers_answers_with_plain_text(tmp_path: Path) -> None:
    codec = make_codec(tmp_path, PLAIN)

    assert codec.dialect is None
    assert open_output(chat(tools=[]), codec, prompt_of(codec)) is None
