"""The levers move what they say: a model's own runner, its requests and its workers."""

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from mlxsup.config.schema import Model
from mlxsup.protocol import worker_link as link
from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import Priority
from mlxsup.protocol.jsonrpc import Call
from mlxsup.protocol.service import Event
from mlxsup.supervisor.qos.runner_levers import RunnerLevers
from tests.fakes.memory_worker import MemoryWorker, Plan
from tests.unit.endpoint.in_memory import MODEL, MemoryClient, MemorySupervisor, load, memory_supervisor

COOLDOWN_S = 30.0


class Stage:
    def __init__(self, supervisor: MemorySupervisor, nursery: trio.Nursery) -> None:
        self.supervisor = supervisor
        self.events: list[Event] = []
        service = supervisor.service
        service.events.subscribe(self.events.append)
        self.levers = RunnerLevers(service._pool.runner, service.events, nursery, COOLDOWN_S)

    async def ends_s(self, client: MemoryClient, count: int) -> list[float]:
        """When so many answers came."""
        found = []
        for _ in range(count):
            await client.receive_response()
            found.append(round(trio.current_time(), 1))
        return found


@asynccontextmanager
async def open_stage(*plans: Plan, model: Model | None = None) -> AsyncIterator[tuple[Stage, MemoryClient]]:
    async with memory_supervisor(*plans, model=model) as supervisor, trio.open_nursery() as nursery:
        client = supervisor.connect()
        await load(client)
        yield Stage(supervisor, nursery), client
        nursery.cancel_scope.cancel()


async def test_a_bound_on_the_batch_holds_until_it_is_taken_off(autojump_clock: MockClock) -> None:
    async with open_stage(Plan(token_s=1.0)) as (stage, client):
        stage.levers.batch(MODEL, 1)
        for id in range(3):
            await client.generate(id, tokens=5)
        one_by_one = await stage.ends_s(client, 3)
        # A step that is due at once takes the next one along.
        assert all(later - sooner >= 4.0 for sooner, later in itertools.pairwise(one_by_one))
        stage.levers.batch(MODEL, None)
        for id in range(3):
            await client.generate(id, tokens=5)
        together = await stage.ends_s(client, 3)
        assert together[-1] - together[0] <= 1.0


async def test_a_tier_that_is_shed_is_refused_waits_no_more_and_is_served_again(
    autojump_clock: MockClock,
) -> None:
    async with open_stage(model=Model(batch_sequences_max=1)) as (stage, client):
        await client.generate("runs", tokens=50, priority="background")
        await client.generate("waits", tokens=5, priority="background")
        await client.generate("normal", tokens=5)
        await trio.sleep(1)
        stage.levers.shed(MODEL, Priority.BACKGROUND, True)
        await client.generate("comes", tokens=5, priority="background")
        refused = [await client.receive_response() for _ in range(2)]
        assert {answer["id"] for answer in refused} == {"waits", "comes"}
        for answer in refused:
            assert answer["error"]["data"]["kind"] == ErrorKind.OVERLOADED
            assert answer["error"]["data"]["retry_after_ms"] >= COOLDOWN_S * 1000
        assert {(await client.receive_response())["id"] for _ in range(2)} == {"runs", "normal"}
        stage.levers.shed(MODEL, Priority.BACKGROUND, False)
        await client.generate("again", tokens=5, priority="background")
        assert "result" in await client.receive_response()


async def test_a_chunk_of_the_prompt_is_told_to_the_worker_and_so_is_that_it_is_as_configured(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bytes | None] = []
    obey = MemoryWorker._obey

    async def listen(worker: MemoryWorker, call: Call) -> None:
        if call.method == link.TUNE:
            told.append(call.params)
        await obey(worker, call)

    monkeypatch.setattr(MemoryWorker, "_obey", listen)
    async with open_stage() as (stage, _):
        stage.levers.chunk(MODEL, 64)
        await trio.sleep(1)
        stage.levers.chunk(MODEL, None)
        await trio.sleep(1)
    assert [b'"prefill_chunk_tokens":64' in (params or b"") for params in told] == [True, False]
    assert b'"prefill_chunk_tokens":2048' in (told[1] or b"")


async def test_another_worker_takes_over_and_a_model_without_one_does_not_serve(
    autojump_clock: MockClock,
) -> None:
    async with open_stage() as (stage, client):
        assert stage.levers.serves(MODEL)
        await client.generate("runs", tokens=100)
        await trio.sleep(1)
        stage.levers.recycle(MODEL)
        answer = await client.receive_response()
        assert answer["result"]["usage"]["completion_tokens"] == 100
        await trio.sleep(30)
        assert len(stage.supervisor.shop.workers) == 2
        await client.request("unload", "model/unload", {"model": MODEL})
        await client.receive_response()
        assert not stage.levers.serves(MODEL)


async def test_a_worker_that_cannot_be_replaced_goes_on_and_the_log_says_so(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    broken = Plan(load_error=RpcError(ErrorKind.MODEL_LOAD_FAILED, "no such weights"))
    async with open_stage(Plan(), broken) as (stage, client):
        stage.levers.recycle(MODEL)
        await trio.sleep(60)
        await client.generate("still", tokens=3)
        assert "result" in await client.receive_response()
    assert "cannot recycle the worker" in caplog.text


async def test_what_is_told_is_an_event_of_the_topic(autojump_clock: MockClock) -> None:
    async with open_stage() as (stage, _):
        stage.levers.tell(MODEL, "done", {"action": "event"})
        assert stage.events[-1] == Event(topic="slo", model=MODEL, what="done", detail={"action": "event"})
