"""An engine that becomes slow breaks an objective: what is configured is done, and undone once it is fast again."""

from typing import Any

import msgspec
import pytest
import trio
from msgspec.structs import replace
from trio.testing import MockClock

from mlxsup.config.schema import Model, Qos, Slo
from mlxsup.protocol.errors import ErrorKind
from mlxsup.protocol.generation import Priority
from mlxsup.protocol.service import Event, Stats
from tests.fakes.memory_worker import Plan
from tests.unit.endpoint.in_memory import MODEL, MemoryClient, MemorySupervisor, load, memory_supervisor

FAST_S, SLOW_S = 0.1, 0.8
GAP_S = 0.3
QOS = Qos(short_window_s=30.0, long_window_s=120.0, interval_s=2.0, cooldown_s=10.0)
SLO = Slo(inter_token_s=GAP_S, actions=("event", "shed", "chunk"))
CHUNK_TOKENS = 256
# Of each tier; slow as it is, nobody waits so long that the scheduler itself would shed.
USERS, TOKENS = 2, 15


class Theatre:
    """A model with a few users of tier normal and some background load, for ever."""

    def __init__(self, supervisor: MemorySupervisor, nursery: trio.Nursery) -> None:
        self.supervisor = supervisor
        self.nursery = nursery
        self.events: list[tuple[float, Event]] = []
        self.refused: list[tuple[float, dict[str, Any]]] = []
        self.answered: dict[str, list[float]] = {"normal": [], "background": []}
        self._client = supervisor.connect()

    async def begin(self) -> None:
        await load(self._client)
        await self._client.request("sub", "server/subscribe", {"topics": ["slo"]})
        await self._client.receive_response()
        for _ in range(USERS):
            for priority in self.answered:
                self.nursery.start_soon(self._use, self.supervisor.connect(), priority)
        self.nursery.start_soon(self._listen)

    async def _use(self, client: MemoryClient, priority: str) -> None:
        while True:
            await client.generate(1, tokens=TOKENS, priority=priority)
            answer = await client.receive_response()
            now_s = trio.current_time()
            if "error" in answer:
                assert priority == "background", answer
                self.refused.append((now_s, answer["error"]["data"]))
                await trio.sleep(answer["error"]["data"]["retry_after_ms"] / 1000)
            else:
                self.answered[priority].append(now_s)

    async def _listen(self) -> None:
        listener = self.supervisor.connect()
        await listener.request("sub", "server/subscribe", {"topics": ["slo"]})
        while True:
            message = await listener.receive()
            if message.get("method") == "event":
                self.events.append((trio.current_time(), msgspec.convert(message["params"], Event)))

    def pace(self, token_s: float) -> None:
        worker = self.supervisor.shop.workers[-1]
        worker.plan = replace(worker.plan, token_s=token_s)

    async def stats(self) -> Stats:
        client = self.supervisor.connect()
        await client.request("stats", "server/stats")
        answer = await client.receive_response()
        await client.leave()
        return msgspec.convert(answer["result"], Stats)

    def told(self, what: str, since_s: float) -> list[tuple[str, float]]:
        return [
            (event.detail["action"], at_s)
            for at_s, event in self.events
            if event.what == what and at_s >= since_s
        ]


@pytest.mark.slow
async def test_a_slow_engine_has_the_configured_done_within_a_window_and_undone_when_it_is_fast_again(
    autojump_clock: MockClock,
) -> None:
    model = Model(slo={Priority.NORMAL: SLO}, prefill_chunk_tokens=CHUNK_TOKENS)
    async with (
        memory_supervisor(Plan(token_s=FAST_S), model=model, qos=QOS) as supervisor,
        trio.open_nursery() as nursery,
    ):
        theatre = Theatre(supervisor, nursery)
        await theatre.begin()
        await trio.sleep(3 * QOS.long_window_s)
        assert theatre.events == []
        assert theatre.refused == []

        slow_s = trio.current_time()
        theatre.pace(SLOW_S)
        await trio.sleep(2 * QOS.long_window_s)
        done = theatre.told("done", slow_s)
        assert [action for action, _ in done] == [*("event", "shed background", "chunk 128")]
        assert done[0][1] - slow_s <= QOS.long_window_s
        assert theatre.told("undone", slow_s) == []
        assert {data["kind"] for _, data in theatre.refused} == {ErrorKind.OVERLOADED}
        assert min(at_s for at_s, _ in theatre.refused) >= done[1][1]
        assert min(data["retry_after_ms"] for _, data in theatre.refused) >= QOS.cooldown_s * 1000
        stats = (await theatre.stats()).slo[MODEL]["normal"]
        assert [(found.objective, found.state) for found in stats] == [("inter_token_s", "acting")]
        assert stats[0].in_force == [action for action, _ in done]
        assert stats[0].burn_short >= QOS.burn_rate_max

        fast_s = trio.current_time()
        theatre.pace(FAST_S)
        await trio.sleep(3 * QOS.long_window_s)
        undone = theatre.told("undone", fast_s)
        assert [action for action, _ in undone] == [action for action, _ in done[::-1]]
        assert theatre.told("done", fast_s) == []
        await trio.sleep(60)
        # Everybody is served again.
        assert theatre.refused[-1][0] <= undone[-2][1]
        assert theatre.answered["background"][-1] >= trio.current_time() - 10
        (found,) = (await theatre.stats()).slo[MODEL]["normal"]
        assert (found.state, found.in_force, found.burn_short, found.burn_long) == ("ok", [], 0.0, 0.0)
        assert [change.undone for change in found.changes] == [False] * 3 + [True] * 3
        # What each of them changed is known: it was the engine all the time.
        assert all(change.before is not None and change.after is not None for change in found.changes)
        assert (found.changes[0].before or 0.0) >= 2 * GAP_S
        assert (found.changes[-1].after or 0.0) <= GAP_S
        nursery.cancel_scope.cancel()
