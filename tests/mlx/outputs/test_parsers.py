"""Every tool parser of mlx-lm reads what its models say, cut anywhere, and fails of no text."""

import importlib
import json
import pkgutil
from typing import Any

import mlx_lm.tool_parsers
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxsup.protocol.generation import ToolCall
from mlxsup.worker.engine.outputs.calls import CallReader
from mlxsup.worker.engine.outputs.dialect import Dialect, Part, read_dialect
from mlxsup.worker.engine.outputs.split import SplitStream
from mlxsup.worker.engine.outputs.stream import Piece

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        },
    },
}
TIME = {"type": "function", "function": {"name": "get_time"}}

# What each says to get the weather of Paris for two days; True: also the time behind it, between the same markers.
SAYINGS: dict[str, list[tuple[str, bool]]] = {
    "function_gemma": [
        (
            "<start_function_call>call:get_weather{city:<escape>Paris<escape>,days:2}<end_function_call>",
            False,
        )
    ],
    "gemma4": [
        ('<|tool_call>call:get_weather{city:<|"|>Paris<|"|>,days:2}<tool_call|>', False),
        ('<|tool_call>call:get_weather{city:<|"|>Paris<|"|>,days:2}call:get_time{}<tool_call|>', True),
    ],
    "glm47": [
        (
            (
                "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Paris</arg_value>"
                "<arg_key>days</arg_key><arg_value>2</arg_value></tool_call>"
            ),
            False,
        ),
        ('<tool_call>{"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}</tool_call>', False),
    ],
    "json_tools": [
        (
            '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}\n</tool_call>',
            False,
        )
    ],
    "kimi_k2": [
        (
            (
                "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
                '{"city": "Paris", "days": 2}<|tool_call_end|><|tool_calls_section_end|>'
            ),
            False,
        ),
        (
            (
                "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
                '{"city": "Paris", "days": 2}<|tool_call_end|><|tool_call_begin|>functions.get_time:1'
                "<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>"
            ),
            True,
        ),
    ],
    "kimi_k3": [
        (
            (
                '<|open|>tools<|sep|><|open|>call tool="get_weather" index="0"<|sep|>'
                '<|open|>argument key="city" type="string"<|sep|>Paris<|close|>argument<|sep|>'
                '<|open|>argument key="days" type="integer"<|sep|>2<|close|>argument<|sep|>'
                '<|close|>call<|sep|><|open|>call tool="get_time" index="1"<|sep|>'
                "<|close|>call<|sep|><|close|>tools<|sep|>"
            ),
            True,
        )
    ],
    "laguna": [
        (
            (
                "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Paris</arg_value>"
                "<arg_key>days</arg_key><arg_value>2</arg_value></tool_call>"
            ),
            False,
        )
    ],
    "longcat": [
        (
            (
                "<longcat_tool_call>get_weather\n<longcat_arg_key>city</longcat_arg_key>\n"
                "<longcat_arg_value>Paris</longcat_arg_value>\n<longcat_arg_key>days</longcat_arg_key>\n"
                "<longcat_arg_value>2</longcat_arg_value>\n</longcat_tool_call>"
            ),
            False,
        )
    ],
    "minicpm5": [
        (
            '<function name="get_weather"><param name="city">Paris</param><param name="days">2</param></function>',
            False,
        )
    ],
    "minimax_m2": [
        (
            (
                '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Paris</parameter>\n'
                '<parameter name="days">2</parameter>\n</invoke>\n<invoke name="get_time">\n</invoke>\n'
                "</minimax:tool_call>"
            ),
            True,
        )
    ],
    "mistral": [
        ('[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}]', False),
        (
            '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris", "days": 2}[TOOL_CALLS]get_time[ARGS]{}',
            True,
        ),
    ],
    "muse_spark": [
        (
            (
                '<atem:function_calls>\n<atem:invoke name="get_weather">\n<atem:parameter name="city">Paris'
                '</atem:parameter>\n<atem:parameter name="days">2</atem:parameter>\n</atem:invoke>\n'
                '<atem:invoke name="get_time">\n</atem:invoke>\n</atem:function_calls>'
            ),
            True,
        )
    ],
    "pythonic": [
        (
            '<|tool_call_start|>[get_weather(city="Paris", days=2), get_time()]<|tool_call_end|>',
            True,
        )
    ],
    "qwen3_coder": [
        (
            (
                "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n2\n"
                "</parameter>\n</function>\n</tool_call>"
            ),
            False,
        )
    ],
}
EXAMPLES = [(name, said, has_time) for name, sayings in SAYINGS.items() for said, has_time in sayings]
# Their parsers read JSON, too, between the same markers.
JSON_STYLES = {
    "json_tools": "json",
    "glm47": "json",
    "laguna": "json",
    "longcat": "json",
    "mistral": "json_list",
}


class Marks(msgspec.Struct):
    """Of a tokenizer whose model calls tools in this way, and knows nothing else."""

    tool_parser: Any
    tool_call_start: str
    tool_call_end: str
    think_start: str | None = None
    think_end: str | None = None
    structural_markers: tuple[str, ...] = ()
    response_transitions: dict[str, list[tuple[str, str]]] = {}
    response_initial_state: str | None = None


def dialect_of(name: str) -> Dialect:
    module = importlib.import_module(f"mlx_lm.tool_parsers.{name}")
    dialect = read_dialect(Marks(module.parse_tool_call, module.tool_call_start, module.tool_call_end))
    assert dialect is not None
    return dialect


def split(name: str, pieces: list[str]) -> Piece:
    dialect = dialect_of(name)
    assert dialect.parse is not None
    stream = SplitStream(
        dialect, CallReader(dialect.parse, [WEATHER, TIME], seed=1, prompt_tokens=[1]), Part.TEXT
    )
    gained = [stream.add(piece) for piece in pieces]
    gained.append(stream.flush())
    calls: list[ToolCall] = [call for piece in gained for call in piece.tool_calls]
    return Piece("".join(piece.text for piece in gained), "", calls)


def test_no_parser_is_forgotten() -> None:
    assert set(SAYINGS) == {module.name for module in pkgutil.iter_modules(mlx_lm.tool_parsers.__path__)}


@pytest.mark.parametrize(("name", "said", "has_time"), EXAMPLES)
def test_a_call_in_the_models_own_format_is_read_however_it_is_cut(
    name: str, said: str, has_time: bool
) -> None:
    whole = split(name, ["Let me see.", said])
    expected = [("get_weather", {"city": "Paris", "days": 2})]
    if has_time:
        expected.append(("get_time", {}))

    calls = [(call.function.name, json.loads(call.function.arguments)) for call in whole.tool_calls]
    assert (whole.text, calls) == ("Let me see.", expected)
    assert split(name, list(f"Let me see.{said}")) == whole


@pytest.mark.parametrize(("name", "said", "has_time"), EXAMPLES)
def test_a_call_that_is_cut_off_has_no_arguments_that_were_not_said(
    name: str, said: str, has_time: bool
) -> None:
    whole = split(name, [said])
    for end in range(len(said)):
        piece = split(name, [said[:end]])

        assert piece.tool_calls in ([], whole.tool_calls[: len(piece.tool_calls)])
        assert piece.tool_calls or piece.text == said[:end]


@pytest.mark.parametrize("name", SAYINGS)
@given(data=st.data())
def test_no_text_makes_a_parser_fail(name: str, data: st.DataObject) -> None:
    dialect = dialect_of(name)
    assert dialect.tools is not None
    shreds = st.sampled_from(
        [said[at : at + 9] for said, _ in SAYINGS[name] for at in range(0, len(said), 3)]
        + [dialect.tools.start, dialect.tools.end, "\n", "{", '"', "\\", "é"]
    )
    answer = "".join(data.draw(st.lists(shreds, max_size=30)))
    whole = split(name, [answer])

    assert whole.tool_calls or whole.text == answer


@pytest.mark.parametrize("name", SAYINGS)
def test_the_style_of_a_format_is_known(name: str) -> None:
    dialect = dialect_of(name)

    assert dialect.tools is not None
    assert dialect.tools.style == JSON_STYLES.get(name, "other")
