"""`server/stats` counts what became of requests and of workers."""

from typing import Any

import trio
from trio.testing import MockClock

from tests.unit.endpoint.in_memory import MODEL, MemoryClient, MemorySupervisor, load, memory_supervisor


async def stats(client: MemoryClient) -> Any:
    await client.request("stats", "server/stats")
    return (await client.receive_response())["result"]


async def lose_worker(supervisor: MemorySupervisor) -> None:
    await trio.sleep(20)
    supervisor.shop.workers[-1].die(-9)


async def test_a_request_that_went_on_in_other_workers_is_counted_once(autojump_clock: MockClock) -> None:
    async with memory_supervisor() as supervisor:
        client = supervisor.connect()
        await load(client)
        await client.generate(1, 1000)
        await lose_worker(supervisor)
        await lose_worker(supervisor)
        first = await client.receive_response()
        await client.generate(2)
        second = await client.receive_response()
        counted = await stats(client)

    assert (first["result"]["worker"]["resumed"], second["result"]["worker"]["resumed"]) == (2, 0)
    assert counted["overall"]["requests_resumed"] == 1
    assert counted["models"][MODEL]["requests_resumed"] == 1


async def test_a_death_that_was_told_is_counted_for_its_model(autojump_clock: MockClock) -> None:
    async with memory_supervisor() as supervisor:
        client = supervisor.connect()
        before = (await stats(client))["workers"]
        supervisor.service.events.publish("death", MODEL, "killed", pid=1, generation=1)
        after = (await stats(client))["workers"]

    assert before == {MODEL: {"deaths": {}, "restarts": 0}}
    assert after == {MODEL: {"deaths": {"killed": 1}, "restarts": 0}}
