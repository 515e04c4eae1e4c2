"""Whether the kernel ended a process for want of memory around a worker's death, told by a count. Pure.

Others are counted too: whatever shares the worker's memory cgroup. So only what was counted lately speaks of this death.
"""


class OomEvidence:
    """`kills` is the count at a moment, None where nothing counts."""

    def __init__(self, kills: int | None) -> None:
        self._older = self._newer = kills

    def note_alive(self, kills: int | None) -> None:
        """The worker has said something. It may be dying all the same: its end is counted before it ends."""
        self._older, self._newer = self._newer, kills

    def rose(self, kills: int | None) -> bool | None:
        """`kills` as counted after its death. Whether there was another since the last sign of life but one."""
        if kills is None or self._older is None:
            return None
        return kills > self._older
