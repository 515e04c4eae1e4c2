"""How a model marks up the parts of its answers. Pure: it reads what mlx-lm found out about a tokenizer."""

from collections.abc import Callable
from enum import Enum
from typing import Any, Literal, Protocol

import msgspec

ParseCalls = Callable[[str, list[dict[str, Any]]], Any]
"""One of mlx-lm's tool parsers: what stands between the markers, and the tools, into a call or a list of them."""

CallStyle = Literal["json", "json_list", "other"]


class Part(Enum):
    """Of an answer. Hidden is what only directs the rest, such as whom a message is for. The names are mlx-lm's states."""

    TEXT = "normal"
    REASONING = "reasoning"
    CALL = "tool"
    HIDDEN = "header"


class ToolMarkers(msgspec.Struct, frozen=True):
    """What stands around a tool call; with an empty `end` it runs to the end of the answer.

    Between them `json` models may say `{"name": …, "arguments": {…}}`, and `json_list` ones a list of such.
    """

    start: str
    end: str
    style: CallStyle


class Dialect(msgspec.Struct, frozen=True):
    """`exits` are a part's markers and the parts that they lead to; calls have their own, which `tools` says.

    Answers begin in `first`, behind a prompt that ends with `think_start` in the reasoning.
    """

    exits: dict[Part, dict[str, Part]]
    first: Part = Part.TEXT
    think_start: str | None = None
    think_end: str | None = None
    tools: ToolMarkers | None = None
    parse: ParseCalls | None = None


class MarkedTokenizer(Protocol):
    """What of mlx-lm's `TokenizerWrapper` tells the dialect."""

    @property
    def think_start(self) -> str | None: ...
    @property
    def think_end(self) -> str | None: ...
    @property
    def tool_parser(self) -> ParseCalls | None: ...
    @property
    def tool_call_start(self) -> str | None: ...
    @property
    def tool_call_end(self) -> str | None: ...
    @property
    def structural_markers(self) -> tuple[str, ...]: ...
    @property
    def response_transitions(self) -> dict[str, list[tuple[str, str]]]: ...
    @property
    def response_initial_state(self) -> str | None: ...


def tool_markers(tokenizer: MarkedTokenizer) -> ToolMarkers | None:
    """None: mlx-lm has no parser for this model's tool calls."""
    start, parse = tokenizer.tool_call_start, tokenizer.tool_parser
    if not start or parse is None:
        return None
    return ToolMarkers(start, tokenizer.tool_call_end or "", _style(parse))


def read_dialect(tokenizer: MarkedTokenizer) -> Dialect | None:
    """None: its answers are plain text. As in mlx-lm's server, a call may also begin in the reasoning."""
    exits: dict[Part, dict[str, Part]] = {part: {} for part in Part}
    start, end = tokenizer.think_start, tokenizer.think_end
    if start and end:
        exits[Part.TEXT][start] = Part.REASONING
        exits[Part.REASONING][end] = Part.TEXT
    exits[Part.TEXT].update(dict.fromkeys(tokenizer.structural_markers, Part.TEXT))
    for part, ways in tokenizer.response_transitions.items():
        exits[Part(part)].update({marker: Part(target) for marker, target in ways})
    tools = tool_markers(tokenizer)
    if tools is not None:
        headed = any(Part.CALL in ways.values() for ways in exits.values())
        if not headed:
            exits[Part.TEXT][tools.start] = Part.CALL
        if start and end:
            exits[Part.REASONING][tools.start] = Part.CALL
    if not any(exits.values()):
        return None
    return Dialect(
        exits=exits,
        first=Part(tokenizer.response_initial_state or Part.TEXT),
        think_start=start or None,
        think_end=end or None,
        tools=tools,
        parse=tokenizer.tool_parser,
    )


def _style(parse: ParseCalls) -> CallStyle:
    call = {"name": "f", "arguments": {"a": ["b", 1]}}
    said = msgspec.json.encode(call).decode()
    if _reads(parse, said, call):
        return "json"
    return "json_list" if _reads(parse, f"[{said}]", call) else "other"


def _reads(parse: ParseCalls, said: str, call: dict[str, Any]) -> bool:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    try:
        return bool(parse(said, [tool]) == call)
    except Exception:  # noqa: BLE001  (a parser that can't read something says so in many ways)
        return False
