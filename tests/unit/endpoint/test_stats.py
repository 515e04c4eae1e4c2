"""`server/stats` counts what became of requests and of workers."""

from typing import Any

import trio
from trio.testing import MockClock

from mlxsup.config.schema import Model
from tests.unit.endpoint.in_memory import MODEL, MemoryClient, MemorySupervisor, load, memory_supervisor


async def stats(client: MemoryClient) -> Any:
    """Of now; what else was answered until then is dropped."""
    await client.request("stats", "server/stats")
    while (answer := await client.receive_response())["id"] != "stats":
        pass
    return answer["result"]


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


async def test_who_is_computed_and_who_waits_is_told_by_tier_while_it_is_so(
    autojump_clock: MockClock,
) -> None:
    async with memory_supervisor(model=Model(batch_sequences_max=2)) as supervisor:
        client = supervisor.connect()
        await load(client)
        await client.generate("first", 1000, priority="background")
        await client.generate("second", 1000, priority="background")
        await client.generate("third", 1000, priority="high")
        # Until the first two are long enough under way to give way.
        await trio.sleep(10)
        await client.generate("fourth", 1000, priority="interactive")
        await trio.sleep(1)
        activity = (await stats(client))["activity"][MODEL]

    assert activity["running"] == {"interactive": 1, "high": 0, "normal": 0, "background": 1}
    assert activity["queued"] == {"interactive": 0, "high": 1, "normal": 0, "background": 1}
    assert activity["queued_again"] == 1
    assert activity["residency"] == "resident"


async def test_tokens_of_a_stream_are_counted_and_its_times_are_known_while_it_runs(
    autojump_clock: MockClock,
) -> None:
    async with memory_supervisor() as supervisor:
        client = supervisor.connect()
        await load(client)
        await client.generate(1, 1000)
        await trio.sleep(30)
        running = (await stats(client))["models"][MODEL]
        # Longer than what is recent.
        await trio.sleep(200)
        done = (await stats(client))["models"][MODEL]

    # A worker in memory has a token every 100 ms.
    assert 290 <= running["completion_tokens_total"] <= 301
    assert running["requests_active"] == 1
    assert running["inter_token_ms"]["count"] == 0
    recent = running["recent"]
    assert recent["ttft_ms"]["count"] == 1
    assert recent["ttft_ms"]["max"] <= 100
    # One for each stretch of sixteen tokens.
    assert 16 <= recent["inter_token_ms"]["count"] <= 18
    assert 95 < recent["inter_token_ms"]["p99"] < 105

    assert done["completion_tokens_total"] == 1000
    assert done["requests_active"] == 0
    assert done["recent"]["ttft_ms"]["count"] == done["recent"]["inter_token_ms"]["count"] == 0


async def test_what_is_refused_is_counted_by_its_error(autojump_clock: MockClock) -> None:
    async with memory_supervisor(model=Model(batch_sequences_max=1, queue_requests_max=1)) as supervisor:
        client = supervisor.connect()
        await load(client)
        for id in range(5):
            await client.generate(id, 1000)
        counted = await stats(client)

    overall = counted["overall"]
    assert overall["requests_total"] + overall["refused"]["overloaded"] == 5
    assert overall["refused"]["overloaded"] >= 1
    assert (
        counted["models"][MODEL]["refused"]
        == counted["priorities"]["normal"]["refused"]
        == overall["refused"]
    )


async def test_the_memory_that_is_kept_for_models_adds_up(autojump_clock: MockClock) -> None:
    async with memory_supervisor(others={"other": Model()}) as supervisor:
        client = supervisor.connect()
        await load(client)
        counted = await stats(client)

    memory, activity = counted["memory"], counted["activity"]
    assert memory["reserved_bytes"] == sum(model["reserved_bytes"] for model in activity.values()) > 0
    assert activity["other"]["reserved_bytes"] == 0
    assert activity["other"]["residency"] == "out"
    assert memory["free_bytes"] <= memory["capacity_bytes"] - memory["reserved_bytes"]
