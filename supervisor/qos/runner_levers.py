"""The levers as the models' runners have them."""

import logging
from collections.abc import Callable
from typing import Any

import trio

from mlxsup.protocol.errors import RpcError
from mlxsup.protocol.generation import Priority
from mlxsup.supervisor.events import EventBus
from mlxsup.supervisor.pool.lifecycle import WorkerState
from mlxsup.supervisor.pool.runner import ModelRunner

TOPIC = "slo"

_log = logging.getLogger(__name__)


class RunnerLevers:
    """`find` gives the runner of a configured model; workers are recycled in `nursery`."""

    def __init__(
        self, find: Callable[[str], ModelRunner], events: EventBus, nursery: trio.Nursery, cooldown_s: float
    ) -> None:
        self._find = find
        self._cooldown_s = cooldown_s
        self._events = events
        self._nursery = nursery

    def shed(self, model: str, tier: Priority, on: bool) -> None:
        # No sooner is it undone.
        self._find(model).shed(tier, self._cooldown_s if on else None)

    def batch(self, model: str, sequences_max: int | None) -> None:
        self._find(model).limit_batch(sequences_max)

    def chunk(self, model: str, tokens: int | None) -> None:
        self._find(model).tune_prefill(tokens)

    def recycle(self, model: str) -> None:
        self._nursery.start_soon(self._recycle, model)

    async def _recycle(self, model: str) -> None:
        try:
            await self._find(model).recycle()
        except RpcError as error:
            _log.error("%s: cannot recycle the worker: %s", model, error)

    def serves(self, model: str) -> bool:
        return self._find(model).snapshot().state is WorkerState.READY

    def tell(self, model: str, what: str, detail: dict[str, Any]) -> None:
        self._events.publish(TOPIC, model, what, **detail)
