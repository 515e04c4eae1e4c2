"""States of a model's worker, and what may follow what. Pure.

Rule 1: only the model's runner changes its state. Rule 2: READY is something that the worker says, never
something guessed from a port or a timer. Rule 3: a state that says why it was entered keeps its reason.
"""

from enum import StrEnum


class WorkerState(StrEnum):
    STOPPED = "stopped"
    SPAWNING = "spawning"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    FAILED = "failed"
    """The last load failed; the next request tries again."""


FOLLOWS: dict[WorkerState, frozenset[WorkerState]] = {
    WorkerState.STOPPED: frozenset({WorkerState.SPAWNING}),
    WorkerState.SPAWNING: frozenset(
        {WorkerState.LOADING, WorkerState.STOPPING, WorkerState.STOPPED, WorkerState.FAILED}
    ),
    WorkerState.LOADING: frozenset({WorkerState.READY, WorkerState.STOPPING}),
    WorkerState.READY: frozenset({WorkerState.DRAINING, WorkerState.STOPPING}),
    WorkerState.DRAINING: frozenset({WorkerState.STOPPING}),
    WorkerState.STOPPING: frozenset({WorkerState.STOPPED, WorkerState.FAILED}),
    WorkerState.FAILED: frozenset({WorkerState.SPAWNING}),
}
