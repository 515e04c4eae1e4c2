"""As many open files as the configured clients and workers need: the usual soft limit may be far less. Edge."""

import logging
import resource

from mlxsup.config.schema import Config

_log = logging.getLogger(__name__)

# Its pipes, the one that waits for its end, and what a spawn needs for a moment.
_PER_PROCESS = 8
# The database, the log, the event loop, and files that are read for a moment.
_OWN = 64


def descriptors_needed(config: Config) -> int:
    """With all clients connected, each model about to be replaced, and all pulls under way."""
    processes = 2 * len(config.models) + config.worker.spares + config.server.pulls_max
    return config.server.connections_max + _PER_PROCESS * processes + _OWN


def raise_descriptor_limit(needed: int) -> None:
    """Raise the soft limit to `needed`, as far as the hard one allows, and warn if it does not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (ValueError, OSError):
        # macOS has one more bound, of the kernel's.
        wanted = soft
    if wanted < needed:
        _log.warning(
            "this process may open %d files, and `server.connections_max` clients with the workers need %d: raise the "
            "limit (`ulimit -n`), or lower `server.connections_max`",
            wanted,
            needed,
        )
