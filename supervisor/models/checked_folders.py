"""Checks a model folder again only when something in it has changed: a crash loop asks for it at each start. Edge."""

import os
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from mlxsup.supervisor.models.folder_check import FILES_MAX, FolderFacts, check_folder

# File systems keep times more or less exactly: what changes again so soon may look as it did.
_SETTLED_S = 2.0

_Stamp = tuple[int, ...]
_Signature = frozenset[tuple[str, _Stamp, _Stamp]]


class CheckedFolders:
    """What was checked, by its folder. Every method may block on the disk."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """`clock` is the one that files are stamped by, in seconds."""
        self._clock = clock
        self._checked: dict[Path, tuple[_Signature, FolderFacts]] = {}

    def check(self, folder: Path) -> FolderFacts:
        """As `check_folder`; of an unchanged folder no file is opened. What is refused is checked each time.

        Raises:
            RpcError: MODEL_LOAD_FAILED, as `check_folder`.
        """
        now_s = self._clock()
        signature = _sign(folder)
        known_signature, facts = self._checked.pop(folder, (None, None))
        if facts is None or signature != known_signature:
            facts = check_folder(folder)
        if signature is not None and _changed_s(signature) < now_s - _SETTLED_S:
            self._checked[folder] = (signature, facts)
        return facts


def _sign(folder: Path) -> _Signature | None:
    """Everything about the files that changes when they do; None where it can't be had."""
    try:
        with os.scandir(folder) as entries:
            files = list(islice(entries, FILES_MAX + 1))
        if len(files) > FILES_MAX:
            return None
        # Of a link both: where it leads, and what is there.
        return frozenset(
            (entry.name, _stamp(entry.stat(follow_symlinks=False)), _stamp(entry.stat())) for entry in files
        )
    except OSError:
        return None


def _stamp(status: os.stat_result) -> _Stamp:
    return (
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_mode,
        status.st_size,
        status.st_ino,
        status.st_dev,
    )


def _changed_s(signature: _Signature) -> float:
    """When anything of it was last changed."""
    return max((max(stamp[:2]) for _, *stamps in signature for stamp in stamps), default=0) / 1e9
