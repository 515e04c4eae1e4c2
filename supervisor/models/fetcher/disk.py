"""Whether there is room. Edge."""

import shutil
from pathlib import Path

from mlxsup.supervisor.models.fetcher.faults import no_space


def require_free(folder: Path, bytes_needed: int) -> None:
    """Refuse to begin what can't be finished; what `folder` already holds counts as free.

    Raises:
        RpcError: LIMIT_EXCEEDED with both figures.
    """
    free = shutil.disk_usage(folder).free + bytes_below(folder)
    if free < bytes_needed:
        raise no_space(bytes_needed, free)


def bytes_below(folder: Path) -> int:
    """The sizes of all the files in and below `folder`. Files that vanish meanwhile don't count."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total
