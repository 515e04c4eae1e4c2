"""What is counted of a model's workers, from the events that tell of them. Pure."""

from mlxsup.protocol.service import Event, WorkerCounters
from mlxsup.supervisor.pool.lifecycle import WorkerState


class _Model:
    def __init__(self) -> None:
        self.deaths: dict[str, int] = {}
        self.restarts = 0
        # Of the worker that serves, or is to.
        self.generation = 0
        self.died = False


class WorkerTally:
    """`take` every event. A restart is a start by itself; one by hand, of a model that was given up, is none."""

    def __init__(self) -> None:
        self._models: dict[str, _Model] = {}

    def take(self, event: Event) -> None:
        model = self._models.setdefault(event.model, _Model())
        if event.topic == "worker":
            if event.what == WorkerState.SPAWNING and model.died:
                model.restarts += 1
            model.died = model.died and event.what == WorkerState.BACKOFF
            model.generation = event.detail["generation"]
        elif event.topic == "death" and "pid" in event.detail:
            model.deaths[event.what] = model.deaths.get(event.what, 0) + 1
            # Beside another worker that serves it is not replaced.
            model.died = event.detail["generation"] == model.generation

    def read(self, model: str) -> WorkerCounters:
        counted = self._models.get(model) or _Model()
        return WorkerCounters(deaths=dict(counted.deaths), restarts=counted.restarts)
