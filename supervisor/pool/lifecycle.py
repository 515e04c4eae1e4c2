"""States of a model's worker, and what may follow what. Pure.

Rule 1: only the model's runner changes its state. Rule 2: READY is something that the worker says, never
something guessed from a port or a timer. Rule 3: a state that says why it was entered keeps its reason.
"""

from enum import StrEnum


class WorkerState(StrEnum):
    STOPPED = "stopped"
    SPAWNING = "spawning"
    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    """Its worker died, or could not be spawned; the next one is started once the restart policy and memory allow it."""

    QUARANTINED = "quarantined"
    """Too many workers died in a short time: nothing is started until somebody loads the model by hand."""

    FAILED = "failed"
    """The last load failed for a reason that another try alone does not change."""


_DOWN = frozenset({WorkerState.STOPPED, WorkerState.BACKOFF, WorkerState.QUARANTINED, WorkerState.FAILED})

FOLLOWS: dict[WorkerState, frozenset[WorkerState]] = {
    WorkerState.STOPPED: frozenset({WorkerState.SPAWNING, WorkerState.BACKOFF, WorkerState.FAILED}),
    WorkerState.SPAWNING: frozenset(
        {
            WorkerState.LOADING,
            WorkerState.STOPPING,
            WorkerState.STOPPED,
            WorkerState.BACKOFF,
            WorkerState.FAILED,
        }
    ),
    WorkerState.LOADING: frozenset({WorkerState.WARMING, WorkerState.READY, WorkerState.STOPPING}),
    WorkerState.WARMING: frozenset({WorkerState.READY, WorkerState.STOPPING}),
    WorkerState.READY: frozenset({WorkerState.DRAINING, WorkerState.STOPPING}),
    WorkerState.DRAINING: frozenset({WorkerState.STOPPING}),
    WorkerState.STOPPING: _DOWN,
    WorkerState.BACKOFF: frozenset({WorkerState.SPAWNING, WorkerState.STOPPED, WorkerState.FAILED}),
    WorkerState.QUARANTINED: frozenset({WorkerState.SPAWNING, WorkerState.BACKOFF, WorkerState.FAILED}),
    WorkerState.FAILED: frozenset({WorkerState.SPAWNING, WorkerState.BACKOFF}),
}
