"""Questions to a model's worker that are no generation. They change nothing, so each may be put again to the next worker."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio

from mlxsup.config.schema import Model as ModelConfig
from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.supervisor.pool.life import Life
from mlxsup.supervisor.pool.worker import WorkerGoneError
from mlxsup.supervisor.recovery.gate import Gate
from mlxsup.supervisor.scheduling.scheduler import Scheduler

ResultT = TypeVar("ResultT")
# A question that its second worker dies of, too, is not put to a third.
_DEATHS_MAX = 2


class Questions:
    """`ensure_ready` gives the life that serves, or raises RpcError."""

    def __init__(
        self,
        model: ModelConfig,
        scheduler: Scheduler,
        gate: Gate,
        ensure_ready: Callable[[], Awaitable[Life]],
    ) -> None:
        self._bound = model.queue_requests_max + model.batch_sequences_max
        self._scheduler = scheduler
        self._gate = gate
        self._ensure_ready = ensure_ready

    async def call(self, method: str, params: Any, result_type: type[ResultT]) -> ResultT:
        """Put one, and wait for its answer.

        Raises:
            RpcError: the worker's refusal; OVERLOADED; no worker can be had; WORKER_DIED twice of it.
        """
        refusal = self._gate.why_refused(trio.current_time())
        if refusal is not None:
            raise refusal
        deaths = 0
        while True:
            life = await self._ensure_ready()
            if life.is_failing:
                await life.over.wait()
                continue
            if not self._scheduler.askers.may_ask(trio.current_time()):
                await self._wait_to_ask()
                continue
            if life.questions >= self._bound:
                raise RpcError(
                    ErrorKind.OVERLOADED,
                    f"the worker has {life.questions} questions to answer; try again later",
                    retriable=True,
                )
            try:
                return await life.call(method, params, result_type)
            except WorkerGoneError:
                await life.over.wait()
            if life.error is not None and life.error.kind is ErrorKind.WORKER_DIED:
                deaths += 1
                if deaths == _DEATHS_MAX:
                    raise life.error

    async def _wait_to_ask(self) -> None:
        admitted = trio.Event()
        self._scheduler.askers.wait(admitted.set, trio.current_time())
        try:
            await admitted.wait()
        finally:
            self._scheduler.askers.give_up(admitted.set)
