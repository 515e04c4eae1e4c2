"""Stop strings, found also where they are split over tokens, and never shown. Pure."""


class StopStrings:
    """Lets text through up to the first stop string; holds back what may be the beginning of one."""

    def __init__(self, strings: tuple[str, ...]) -> None:
        self._strings = strings
        self._longest = max(map(len, strings), default=0)
        self._held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """The text that is safe to show now, and whether a stop string has been completed."""
        if not self._strings:
            return text, False
        window = self._held + text
        # The one that is complete first wins; among those that end together, the longest.
        ends = [(at + len(s), at) for s in self._strings if (at := window.find(s)) >= 0]
        if ends:
            self._held = ""
            return window[: min(ends)[1]], True
        keep = self._undecided(window)
        self._held = window[len(window) - keep :]
        return window[: len(window) - keep], False

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _undecided(self, window: str) -> int:
        """Length of the longest end of `window` that a stop string begins with."""
        for length in range(min(self._longest - 1, len(window)), 0, -1):
            end = window[len(window) - length :]
            if any(s.startswith(end) for s in self._strings):
                return length
        return 0
