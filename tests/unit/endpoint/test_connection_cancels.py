"""What becomes of a request that its client takes back: on the mock clock, in memory."""

from typing import Any

import trio
from trio.testing import MockClock

from tests.fakes.memory_worker import Plan, full_text
from tests.unit.endpoint.in_memory import MODEL, MemorySupervisor, load, memory_supervisor


async def cancelled_after(supervisor: MemorySupervisor, tokens: int) -> Any:
    client = supervisor.connect()
    await load(client)
    await client.generate(1, 50, stream=True)
    for _ in range(tokens):
        await client.receive()
    await client.cancel(1)
    return await client.receive_response()


async def test_a_running_request_that_is_cancelled_is_answered_with_its_text_so_far(
    autojump_clock: MockClock,
) -> None:
    async with memory_supervisor() as supervisor:
        answer = await cancelled_after(supervisor, 3)

    assert answer["result"]["finish_reason"] == "cancelled"
    assert answer["result"]["text"] == full_text("p", 3)
    assert answer["result"]["usage"]["completion_tokens"] == 3


async def test_a_waiting_request_that_is_cancelled_is_answered_at_once(autojump_clock: MockClock) -> None:
    async with memory_supervisor(Plan(load_s=100.0)) as supervisor:
        client = supervisor.connect()
        await client.generate(1)
        await client.cancel(1)
        started_s = trio.current_time()
        answer = await client.receive()
        assert trio.current_time() - started_s < 1.0

    assert (answer["result"]["finish_reason"], answer["result"]["text"]) == ("cancelled", "")


async def test_a_method_that_is_no_generation_is_cancelled_with_an_error(autojump_clock: MockClock) -> None:
    async with memory_supervisor(Plan(load_s=100.0)) as supervisor:
        client = supervisor.connect()
        await client.request(1, "model/load", {"model": MODEL})
        await client.cancel(1)
        started_s = trio.current_time()
        answer = await client.receive()
        assert trio.current_time() - started_s < 1.0

    assert (answer["id"], answer["error"]["code"], answer["error"]["data"]["kind"]) == (
        1,
        -32800,
        "cancelled",
    )


async def test_a_cancel_of_what_is_not_in_flight_changes_nothing(autojump_clock: MockClock) -> None:
    async with memory_supervisor() as supervisor:
        client = supervisor.connect()
        await client.generate(1, 2)
        for id in (2, "1", 0, "", -1):
            await client.cancel(id)
        (answer,) = await client.finish()

    assert answer["result"]["finish_reason"] == "length"


async def test_a_cancel_reaches_only_the_client_who_sent_it(autojump_clock: MockClock) -> None:
    async with memory_supervisor() as supervisor:
        one, other = supervisor.connect(), supervisor.connect()
        await one.generate(1, 5)
        await other.generate(1, 5)
        await other.cancel(1)
        assert (await other.receive())["result"]["finish_reason"] == "cancelled"
        assert (await one.receive())["result"]["text"] == full_text("p", 5)


async def test_cancelling_twice_is_answered_once(autojump_clock: MockClock) -> None:
    async with memory_supervisor() as supervisor:
        client = supervisor.connect()
        await load(client)
        await client.generate(1, 50)
        await client.cancel(1)
        await client.cancel(1)
        (answer,) = await client.finish()

    assert answer["result"]["finish_reason"] == "cancelled"
