from typing import Any

import msgspec
import pytest

from mlxsup.worker.engine.outputs.dialect import ParseCalls, Part, ToolMarkers, read_dialect, tool_markers
from tests.unit.outputs.answers import parse_json


class Tokenizer(msgspec.Struct, kw_only=True):
    think_start: str | None = None
    think_end: str | None = None
    tool_parser: ParseCalls | None = None
    tool_call_start: str | None = None
    tool_call_end: str | None = None
    structural_markers: tuple[str, ...] = ()
    response_transitions: dict[str, list[tuple[str, str]]] = {}
    response_initial_state: str | None = None


def parse_nothing(text: str, tools: object) -> Any:
    raise ValueError(text)


def parse_list(text: str, tools: list[dict[str, Any]]) -> Any:
    (call,) = parse_json(text, tools)
    return call


def test_a_model_without_markers_says_plain_text() -> None:
    assert read_dialect(Tokenizer()) is None


def test_thinking_and_tools_make_parts() -> None:
    dialect = read_dialect(
        Tokenizer(
            think_start="<t>",
            think_end="</t>",
            tool_parser=parse_json,
            tool_call_start="<c>",
            tool_call_end="</c>",
        )
    )

    assert dialect is not None
    assert dialect.exits[Part.TEXT] == {"<t>": Part.REASONING, "<c>": Part.CALL}
    assert dialect.exits[Part.REASONING] == {"</t>": Part.TEXT, "<c>": Part.CALL}
    assert dialect.first is Part.TEXT


def test_structure_that_says_nothing_leads_nowhere_else() -> None:
    dialect = read_dialect(Tokenizer(structural_markers=("<r>", "</r>")))

    assert dialect is not None
    assert dialect.exits[Part.TEXT] == {"<r>": Part.TEXT, "</r>": Part.TEXT}


def test_where_headers_begin_calls_text_does_not() -> None:
    transitions = {"header": [("to=user", "normal"), ("<c>", "tool")], "normal": [("<eom>", "header")]}
    dialect = read_dialect(
        Tokenizer(
            response_transitions=transitions,
            response_initial_state="header",
            tool_parser=parse_json,
            tool_call_start="<c>",
            tool_call_end="</c>",
        )
    )

    assert dialect is not None
    assert dialect.first is Part.HIDDEN
    assert dialect.exits[Part.TEXT] == {"<eom>": Part.HIDDEN}
    assert dialect.exits[Part.HIDDEN] == {"to=user": Part.TEXT, "<c>": Part.CALL}


@pytest.mark.parametrize(
    ("parse", "style"), [(parse_json, "json"), (parse_list, "json_list"), (parse_nothing, "other")]
)
def test_the_style_of_calls_is_what_the_parser_reads(parse: ParseCalls, style: str) -> None:
    markers = tool_markers(Tokenizer(tool_parser=parse, tool_call_start="<c>", tool_call_end="</c>"))

    assert markers is not None
    assert (markers.start, markers.end, markers.style) == ("<c>", "</c>", style)


def test_a_call_may_have_no_end_marker() -> None:
    markers = tool_markers(Tokenizer(tool_parser=parse_list, tool_call_start="<c>", tool_call_end=""))

    assert markers == ToolMarkers("<c>", "", "json_list")


def test_without_a_parser_there_are_no_calls() -> None:
    assert tool_markers(Tokenizer(tool_call_start="<c>", tool_call_end="</c>")) is None
