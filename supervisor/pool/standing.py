"""Where a model stands, as everybody sees it, and those who wait until it stands differently."""

import logging

from mlxsup.protocol.errors import RpcError
from mlxsup.supervisor.events import EventBus
from mlxsup.supervisor.pool.attempt import Attempt
from mlxsup.supervisor.pool.lifecycle import FOLLOWS, WorkerState

_log = logging.getLogger(__name__)


class Standing:
    """Written by the model's succession only."""

    def __init__(self, model: str, events: EventBus) -> None:
        self._model = model
        self._events = events
        self.state = WorkerState.STOPPED
        self.reason: str | None = None
        self.attempt = Attempt()

    def enter(self, state: WorkerState, generation: int, reason: str | None = None) -> None:
        assert state is self.state or state in FOLLOWS[self.state], f"{self.state} to {state}"
        self._show(state, generation, reason)

    def adopt(self, state: WorkerState, generation: int) -> None:
        """Another worker's, wherever that one is in its own life: no transition of the last one's."""
        self._show(state, generation, None)

    def settle(self, error: RpcError | None) -> None:
        """Whoever waits is told; whoever comes from now on waits for the next time."""
        attempt, self.attempt = self.attempt, Attempt()
        attempt.settle(error)

    def _show(self, state: WorkerState, generation: int, reason: str | None) -> None:
        self.state, self.reason = state, reason
        _log.info("%s: %s%s", self._model, state, f" ({reason})" if reason else "")
        self._events.publish("worker", self._model, state, generation=generation, reason=reason)
