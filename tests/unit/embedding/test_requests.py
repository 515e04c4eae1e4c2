"""`embed` through a whole supervisor in memory: it waits, runs and ends as a request for text does."""

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from mlxsup.config.schema import Model, Server
from tests.fakes.memory_worker import Plan, embedding
from tests.unit.endpoint.in_memory import MODEL, MemoryClient, load, memory_supervisor

TOKEN_S = 0.1
TEXTS = ["one", "three"]


async def embed(client: MemoryClient, id: Any, input: Any, **params: Any) -> None:
    await client.request(id, "embed", {"model": MODEL, "input": input} | params)


async def test_each_text_has_its_embedding_in_its_place(autojump_clock: MockClock) -> None:
    async with memory_supervisor() as supervisor:
        client = supervisor.connect()
        await embed(client, 1, TEXTS)
        await embed(client, 2, "one")
        found = {
            answer["id"]: answer["result"] for answer in [await client.receive(), await client.receive()]
        }

    assert found[1]["embeddings"] == [embedding("one"), embedding("three")]
    assert found[2]["embeddings"] == [embedding("one")]
    assert found[1]["usage"] == {"prompt_tokens": 2, "completion_tokens": 0, "cached_tokens": 0}


async def test_more_texts_than_are_allowed_are_refused_with_the_bound(autojump_clock: MockClock) -> None:
    async with memory_supervisor(server=Server(embed_inputs_max=2)) as supervisor:
        client = supervisor.connect()
        await embed(client, 1, ["a", "b", "c"])
        error = (await client.receive())["error"]
        await client.request(2, "server/info")
        limits = (await client.receive())["result"]["limits"]

    assert error["data"]["kind"] == "limit_exceeded"
    assert error["data"]["path"] == "$.input"
    assert limits["embed_inputs_max"] == 2


async def test_a_death_in_the_middle_is_not_seen(autojump_clock: MockClock) -> None:
    texts = ["t" * length for length in range(50)]
    async with memory_supervisor() as supervisor:
        client = supervisor.connect()
        await load(client)
        await embed(client, 1, texts)
        await trio.sleep(20 * TOKEN_S)
        supervisor.shop.workers[0].die(-9)
        result = (await client.receive_response())["result"]
        await client.request(2, "server/stats")
        counters = (await client.receive_response())["result"]["overall"]

    assert result["embeddings"] == [embedding(text) for text in texts]
    assert counters["requests_resumed"] == 1
    assert counters["prompt_tokens_total"] == 50


@pytest.mark.parametrize("waits", [False, True])
async def test_a_cancelled_one_is_answered_so(autojump_clock: MockClock, waits: bool) -> None:
    async with memory_supervisor(model=Model(batch_sequences_max=1)) as supervisor:
        client = supervisor.connect()
        await load(client)
        if waits:
            await client.generate("before", tokens=1000)
        await embed(client, 1, ["a"] * 100)
        await trio.sleep(5 * TOKEN_S)
        await client.cancel(1)
        answer = await client.receive_response()
        # The worker tells of it with its next step.
        await trio.sleep(2 * TOKEN_S)
        await client.request(2, "server/stats")
        stats = (await client.receive_response())["result"]

    assert answer["id"] == 1
    assert answer["error"]["data"]["kind"] == "cancelled"
    assert stats["overall"]["ended"] == {"cancelled": 1}
    assert stats["overall"]["requests_active"] == int(waits)


async def test_one_whose_client_has_gone_is_not_computed(autojump_clock: MockClock) -> None:
    async with memory_supervisor() as supervisor:
        leaving, staying = supervisor.connect(), supervisor.connect()
        await load(leaving)
        await embed(leaving, 1, ["a"] * 100)
        await trio.sleep(5 * TOKEN_S)
        await leaving.leave()
        await trio.sleep(5 * TOKEN_S)
        await staying.request(2, "server/stats")
        counters = (await staying.receive())["result"]["overall"]

    assert counters["ended"] == {"cancelled": 1}
    assert counters["requests_active"] == 0


async def test_its_deadline_ends_it(autojump_clock: MockClock) -> None:
    async with memory_supervisor() as supervisor:
        client = supervisor.connect()
        await load(client)
        began_s = trio.current_time()
        await embed(client, 1, ["a"] * 100, deadline_ms=1000)
        error = (await client.receive())["error"]

        assert error["data"]["kind"] == "deadline_exceeded"
        assert trio.current_time() - began_s == pytest.approx(1.0)


async def test_it_waits_in_the_same_queue_as_text_and_by_the_same_tiers(autojump_clock: MockClock) -> None:
    model = Model(
        batch_sequences_max=1, queue_requests_max=2, queue_tier_requests_max=2, queue_client_requests_max=3
    )
    async with memory_supervisor(model=model) as supervisor:
        client = supervisor.connect()
        await load(client)
        await client.generate("running", tokens=20)
        await embed(client, "background", "a", priority="background")
        await client.generate("text", tokens=1)
        await embed(client, "high", "a", priority="high")
        first = await client.receive_response()
        order = [(await client.receive_response())["id"] for _ in range(3)]

    # The queue was full, and the least urgent had to leave it.
    assert first["id"] == "background"
    assert first["error"]["data"]["kind"] == "overloaded"
    assert order == ["running", "high", "text"]


@pytest.mark.parametrize("given", [0, 1])
async def test_a_worker_that_gives_fewer_than_was_asked_for_is_not_believed(
    autojump_clock: MockClock,
    given: int,
) -> None:
    async with memory_supervisor(Plan(embeddings_max=given), Plan()) as supervisor:
        client = supervisor.connect()
        await embed(client, 1, TEXTS)
        result = (await client.receive())["result"]

    assert result["embeddings"] == [embedding(text) for text in TEXTS]
    assert supervisor.shop.workers[0].signals
