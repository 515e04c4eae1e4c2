"""What the text of an answer is made of."""

from typing import Protocol

import msgspec

from mlxsup.protocol.generation import ToolCall


class Piece(msgspec.Struct, frozen=True):
    """Text of the answer, text of the reasoning before it, and tool calls that became certain together."""

    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = []


class OutputStream(Protocol):
    """Of one sequence. However its text is cut, the pieces joined are the same."""

    def add(self, text: str) -> Piece: ...

    def flush(self) -> Piece:
        """What was held back, when no more text comes."""
        ...
