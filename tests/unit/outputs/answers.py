"""Dialects for tests, and answers fed to them in pieces."""

import json
from collections.abc import Iterable
from typing import Any

from mlxsup.worker.engine.outputs.calls import CallReader
from mlxsup.worker.engine.outputs.dialect import Dialect, Part, ToolMarkers
from mlxsup.worker.engine.outputs.split import SplitStream
from mlxsup.worker.engine.outputs.stream import Piece

TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("f", "g")
]


def parse_json(text: str, tools: list[dict[str, Any]]) -> Any:
    return json.loads(text.strip())


QWEN = Dialect(
    exits={
        Part.TEXT: {"<think>": Part.REASONING, "<tool_call>": Part.CALL},
        Part.REASONING: {"</think>": Part.TEXT, "<tool_call>": Part.CALL},
        Part.CALL: {},
        Part.HIDDEN: {},
    },
    think_start="<think>",
    think_end="</think>",
    tools=ToolMarkers("<tool_call>", "</tool_call>", "json"),
    parse=parse_json,
)
# Calls run to the end of the answer.
ENDLESS = Dialect(
    exits={Part.TEXT: {"[CALLS]": Part.CALL}, Part.REASONING: {}, Part.CALL: {}, Part.HIDDEN: {}},
    tools=ToolMarkers("[CALLS]", "", "json_list"),
    parse=parse_json,
)
# Who a message is for stands before it.
HEADED = Dialect(
    exits={
        Part.HIDDEN: {"to=self|": Part.REASONING, "to=user|": Part.TEXT, "<call>": Part.CALL},
        Part.TEXT: {"<eom>": Part.HIDDEN},
        Part.REASONING: {"<eom>": Part.HIDDEN},
        Part.CALL: {},
    },
    first=Part.HIDDEN,
    tools=ToolMarkers("<call>", "</call>", "json"),
    parse=parse_json,
)


def reader(dialect: Dialect = QWEN, seed: int = 7, prompt_tokens: list[int] | None = None) -> CallReader:
    assert dialect.parse is not None
    return CallReader(dialect.parse, TOOLS, seed=seed, prompt_tokens=prompt_tokens or [1, 2, 3])


def split(
    pieces: Iterable[str], dialect: Dialect = QWEN, first: Part | None = None, *, has_tools: bool = True
) -> Piece:
    """All that the answer gives, joined."""
    stream = SplitStream(dialect, reader(dialect) if has_tools else None, first or dialect.first)
    gained = [stream.add(piece) for piece in pieces]
    gained.append(stream.flush())
    return Piece(
        "".join(piece.text for piece in gained),
        "".join(piece.reasoning for piece in gained),
        [call for piece in gained for call in piece.tool_calls],
    )


def said(piece: Piece) -> list[tuple[str, Any]]:
    """Its calls."""
    return [(call.function.name, json.loads(call.function.arguments)) for call in piece.tool_calls]
