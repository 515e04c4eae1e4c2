"""How every schedule ends: nothing bad happens any more, and then everything has to be well again."""

from typing import TYPE_CHECKING, Any

import trio

from mlxsup.supervisor.service import Service
from tests.simulation.history import Answered
from tests.simulation.schedule import OPERATOR, Ask, Question
from tests.simulation.tapped import held_by

if TYPE_CHECKING:
    from tests.simulation.world import World

# By then a worker that hangs has been found, and whoever waits for one has been served or told.
_SETTLE_S = 300.0
_LOOK_S = 0.5
_ANSWER_S = 120.0
# A worker that has fallen ill before may still have to be found, and a breaker to let somebody in again.
_TRIES = 30
_QUIET_S = 120.0
_PROBE_TOKENS = 3


class Finale:
    def __init__(self, world: "World", service: Service) -> None:
        self._world = world
        self._service = service
        self._pool = service._pool
        self._asked = 0

    async def run(self) -> None:
        await trio.sleep_until(self._world.schedule.calm_s)
        self._world.calm_down()
        if not self._world.schedule.ends_midway:
            await self._settle()
            for model in self._world.schedule.config.models:
                await self._bring_back(model)
            with trio.move_on_after(_QUIET_S):
                while self._held():  # noqa: ASYNC110  (no event says that nothing is held)
                    await trio.sleep(_LOOK_S)
            for what in self._held():
                self._world.find(f"held when nobody waits: {what}")
        await self._end()

    async def _settle(self) -> None:
        """Without anybody's doing, whoever waits is answered."""
        with trio.move_on_after(_SETTLE_S):
            while any(client.waiting for client in self._world.clients):  # noqa: ASYNC110  (likewise)
                await trio.sleep(_LOOK_S)
        late = [key for client in self._world.clients for key in client.waiting.values()]
        if late:
            self._world.find(f"still unanswered after {_SETTLE_S:.0f} quiet seconds: {', '.join(late)}")
        self._world.phase("settled")

    async def _bring_back(self, model: str) -> None:
        """It comes back by itself, or when a person loads it who has read that it does not."""
        answer = None
        for _ in range(_TRIES):
            answer = await self._probe(model)
            if answer is None or answer.kind is None:
                return
            if not answer.data["retriable"]:
                await self._ask("model/breaker", {"model": model, "action": "reset"})
                await self._ask("model/load", {"model": model})
            else:
                await trio.sleep(answer.data.get("retry_after_ms", 1000) / 1000)
        self._world.find(f"{model} serves nobody any more: {answer}")

    async def _ask(self, method: str, params: dict[str, Any]) -> Answered | None:
        self._asked += 1
        return await self._answer(Question(key=f"finale{self._asked}", method=method, params=params))

    async def _probe(self, model: str) -> Answered | None:
        self._asked += 1
        key = f"finale{self._asked}"
        return await self._answer(Ask(key=key, model=model, prompt=f"{key}:", max_tokens=_PROBE_TOKENS))

    async def _answer(self, call: Ask | Question) -> Answered | None:
        """None when it does not come, which is noted."""
        operator = self._world.clients[OPERATOR]
        seen = len(self._world.history)
        await operator.ask([call])
        with trio.move_on_after(_ANSWER_S):
            while call.key in operator.waiting.values():  # noqa: ASYNC110  (likewise)
                await trio.sleep(0.1)
        for entry in self._world.history[seen:]:
            if isinstance(entry, Answered) and entry.key == call.key:
                return entry
        self._world.find(f"no answer to {call}")
        return None

    def _held(self) -> list[str]:
        """Nobody waits for anything: what is still held is held for ever."""
        held = {
            "deadlines of requests": len(self._service.texts._deadlines),
            "bytes of params": self._service.params_bytes,
        }
        for runner in self._pool.runners():
            held |= {f"{what} of {runner.name}": count for what, count in held_by(runner).items()}
        alive = [worker for worker in self._world.workers if worker.returncode is None and not worker.undead]
        loaded = [worker for worker in alive if worker.model is not None]
        extra = len(loaded) - len(self._pool.runners())
        # With too little memory for all models some have none.
        shared = self._world.schedule.config.memory.budget_bytes is not None
        held |= {
            "requests that workers compute": sum(worker.sequences for worker in alive),
            "workers beyond one for each model": max(0, extra) if shared else extra,
            "spares beyond what is configured": max(
                0, len(alive) - len(loaded) - self._world.schedule.config.worker.spares
            ),
        }
        return [f"{count} {what}" for what, count in held.items() if count]

    async def _end(self) -> None:
        drain_ms = self._world.schedule.drain_ms
        if self._service.shutdown_asked.is_set():
            # Another one would only end its patience.
            return
        if drain_ms is None:
            self._world.terminate()
        else:
            self._asked += 1
            params = {"drain_ms": drain_ms}
            call = Question(key=f"finale{self._asked}", method="server/shutdown", params=params)
            await self._world.clients[OPERATOR].ask([call])
