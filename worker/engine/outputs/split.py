"""Splits the text of an answer into its parts as it comes. Pure."""

from mlxsup.protocol.generation import ToolCall
from mlxsup.worker.engine.outputs.calls import CallReader, is_whole_json, leaves_a_string_open
from mlxsup.worker.engine.outputs.dialect import Dialect, Part
from mlxsup.worker.engine.outputs.markers import first_marker, undecided_chars
from mlxsup.worker.engine.outputs.stream import Piece

# What is held back of a call till it is complete; what is longer is no call. Parsers take time that grows with the square.
CALL_CHARS_MAX = 1 << 16
# So many end markers may stand within a call's strings.
END_MARKERS_IN_STRINGS_MAX = 8


class _Call:
    """One that has begun: `retreat` is behind the first end marker that might have been in a string, `searched` how far."""

    def __init__(self, origin: Part) -> None:
        self.origin = origin
        self.retreat: int | None = None
        self.in_strings = 0
        self.searched = 0


class _Gained:
    def __init__(self) -> None:
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.calls: list[ToolCall] = []

    def piece(self) -> Piece:
        return Piece("".join(self.text), "".join(self.reasoning), self.calls)


class SplitStream:
    """What is no call after all stays in the part where it began, as it was said.

    Every decision hangs on positions in the text, never on how it is cut. Line breaks behind a marker belong to it.
    """

    def __init__(self, dialect: Dialect, calls: CallReader | None, first: Part) -> None:
        self._dialect = dialect
        self._calls = calls
        self._part = first
        # Text that is not certain yet: the end of a part, or all of a call behind its start marker.
        self._window = ""
        self._call: _Call | None = None
        self._at_start = first is not Part.TEXT
        # A call that begins in the reasoning ends it; its own end marker may come yet, and is no text.
        self._reasoning_broken = False

    def add(self, text: str) -> Piece:
        self._window += text
        gained = _Gained()
        self._scan(gained)
        return gained.piece()

    def flush(self) -> Piece:
        gained = _Gained()
        self._scan(gained)
        while self._call is not None:
            self._end_call_without_marker(self._call, gained)
            self._scan(gained)
        self._show(self._window, gained)
        self._window = ""
        return gained.piece()

    def _scan(self, gained: _Gained) -> None:
        while self._scan_part(gained) if self._call is None else self._scan_call(self._call, gained):
            pass

    def _scan_part(self, gained: _Gained) -> bool:
        """Up to the next marker. False: there is none so far."""
        markers = self._markers()
        found = first_marker(self._window, markers)
        if found is None:
            certain = len(self._window) - undecided_chars(self._window, markers)
            self._show(self._window[:certain], gained)
            self._window = self._window[certain:]
            return False
        self._show(self._window[: found.begin], gained)
        self._window = self._window[found.end :]
        target = markers[found.marker]
        if target is Part.CALL:
            self._call = _Call(self._part)
        else:
            self._enter(target)
        return True

    def _markers(self) -> dict[str, Part]:
        exits = self._dialect.exits[self._part]
        markers = {
            marker: target
            for marker, target in exits.items()
            if target is not Part.CALL or self._calls is not None
        }
        if self._part is Part.TEXT and self._reasoning_broken and self._dialect.think_end is not None:
            markers[self._dialect.think_end] = Part.TEXT
        return markers

    def _scan_call(self, call: _Call, gained: _Gained) -> bool:
        """Up to its end marker. False: it has not come so far."""
        assert self._dialect.tools is not None
        end = self._dialect.tools.end
        at = self._window.find(end, call.searched) if end else -1
        if at > CALL_CHARS_MAX or (at < 0 and len(self._window) >= CALL_CHARS_MAX + max(1, len(end))):
            self._give_up(call, call.retreat or CALL_CHARS_MAX, gained)
            return True
        if at < 0:
            call.searched = max(call.searched, len(self._window) - len(end) + 1)
            return False
        behind = at + len(end)
        body = self._window[:at]
        if self._make_calls(call, body, behind, gained):
            return True
        if call.in_strings < END_MARKERS_IN_STRINGS_MAX and leaves_a_string_open(body):
            call.in_strings += 1
            call.retreat = call.retreat or behind
            call.searched = behind
        else:
            self._give_up(call, call.retreat or behind, gained)
        return True

    def _end_call_without_marker(self, call: _Call, gained: _Gained) -> None:
        assert self._dialect.tools is not None
        # What other formats say is as good a call when its last arguments are missing.
        whole = not self._dialect.tools.end or is_whole_json(self._window)
        if not (whole and self._make_calls(call, self._window, len(self._window), gained)):
            self._give_up(call, call.retreat or len(self._window), gained)

    def _make_calls(self, call: _Call, body: str, behind: int, gained: _Gained) -> bool:
        assert self._calls is not None
        calls = self._calls.read(body)
        if calls is None:
            return False
        gained.calls.extend(calls)
        self._window = self._window[behind:]
        self._call = None
        self._reasoning_broken = call.origin is Part.REASONING
        self._enter(Part.TEXT)
        return True

    def _give_up(self, call: _Call, behind: int, gained: _Gained) -> None:
        """All of it up to there was said, and what follows is looked at anew."""
        assert self._dialect.tools is not None
        self._call = None
        # What directs an answer ends where it calls.
        self._part = Part.TEXT if call.origin is Part.HIDDEN else call.origin
        self._show(self._dialect.tools.start + self._window[:behind], gained)
        self._window = self._window[behind:]

    def _enter(self, part: Part) -> None:
        self._part = part
        self._at_start = True

    def _show(self, text: str, gained: _Gained) -> None:
        if self._at_start:
            text = text.lstrip("\n")
        if not text:
            return
        self._at_start = False
        if self._part is Part.TEXT:
            gained.text.append(text)
        elif self._part is Part.REASONING:
            gained.reasoning.append(text)
