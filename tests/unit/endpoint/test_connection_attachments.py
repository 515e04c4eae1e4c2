"""Requests with an idempotency key that are sent again, by whom and when ever: on the mock clock, in memory."""

from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from mlxsup.config.schema import Model, Server
from tests.fakes.memory_worker import Plan, full_text
from tests.unit.endpoint.in_memory import (
    MODEL,
    WAIT_S,
    MemoryClient,
    MemorySupervisor,
    load,
    memory_supervisor,
)

SERVER = Server(reattach_s=20.0, result_kept_s=100.0)
KEYED: dict[str, Any] = {"idempotency_key": "k", "stream": True}


async def stats(supervisor: MemorySupervisor) -> Any:
    client = supervisor.connect()
    await client.request(1, "server/stats")
    (answer,) = await client.finish()
    return answer["result"]


async def receive_pieces(client: MemoryClient, count: int) -> list[str]:
    return [(await client.receive())["params"]["text"] for _ in range(count)]


async def receive_all(client: MemoryClient) -> tuple[str, Any]:
    """The text of a stream's pieces, and its response."""
    text = ""
    while "method" in (message := await client.receive()):
        text += message["params"]["text"]
    return text, message


async def loaded(supervisor: MemorySupervisor) -> MemoryClient:
    client = supervisor.connect()
    await load(client)
    return client


async def test_who_lost_its_connection_gets_the_whole_text_over_another_one_and_it_is_computed_once(
    autojump_clock: MockClock,
) -> None:
    async with memory_supervisor(server=SERVER) as supervisor:
        first = await loaded(supervisor)
        await first.generate(1, 100, **KEYED)
        await receive_pieces(first, 10)
        await first.leave()
        await trio.sleep(5.0)
        began_s = trio.current_time()
        second = supervisor.connect()
        await second.generate("again", 100, **KEYED)
        (so_far,) = await receive_pieces(second, 1)
        assert trio.current_time() - began_s <= 0.1
        rest, answer = await receive_all(second)
        counted = await stats(supervisor)

    assert len(so_far) > len(full_text("p", 50))
    assert so_far + rest == answer["result"]["text"] == full_text("p", 100)
    assert (answer["id"], answer["result"]["finish_reason"]) == ("again", "length")
    assert answer["result"]["timings"]["total_ms"] < 5000.0
    assert (counted["overall"]["requests_total"], counted["overall"]["ended"]) == (1, {"length": 1})
    assert counted["keyed"]["duplicates_total"] == 1


async def test_a_client_that_does_not_come_back_has_its_request_cancelled(autojump_clock: MockClock) -> None:
    async with memory_supervisor(server=SERVER) as supervisor:
        client = await loaded(supervisor)
        await client.generate(1, 5000, **KEYED)
        await receive_pieces(client, 1)
        await client.leave()
        await trio.sleep(19.5)
        assert (await stats(supervisor))["keyed"]["abandoned"] == 1
        await trio.sleep(1.0)
        counted = await stats(supervisor)

    assert counted["overall"]["ended"] == {"cancelled": 1}
    assert counted["keyed"]["running"] == counted["keyed"]["results_kept"] == 0


async def test_a_result_that_came_while_nobody_was_there_is_given_at_once_until_its_time_is_over(
    autojump_clock: MockClock,
) -> None:
    async with memory_supervisor(server=SERVER) as supervisor:
        client = await loaded(supervisor)
        await client.generate(1, 20, **KEYED)
        await client.leave()
        await trio.sleep(50.0)
        began_s = trio.current_time()
        second = supervisor.connect()
        await second.generate(2, 20, **KEYED)
        text, answer = await receive_all(second)
        assert trio.current_time() == began_s
        assert text == answer["result"]["text"] == full_text("p", 20)
        await trio.sleep(55.0)
        assert (await stats(supervisor))["keyed"]["results_kept"] == 0
        await second.generate(3, 20, **KEYED)
        await receive_all(second)
        counted = await stats(supervisor)

    assert counted["overall"]["requests_total"] == 2


async def test_the_cancel_of_one_of_two_clients_ends_its_own_stream_only(autojump_clock: MockClock) -> None:
    async with memory_supervisor(server=SERVER) as supervisor:
        one = await loaded(supervisor)
        other = supervisor.connect()
        await one.generate(1, 30, **KEYED)
        await other.generate(1, 30, **KEYED)
        await receive_pieces(one, 10)
        await one.cancel(1)
        rest, cancelled = await receive_all(one)
        text, answer = await receive_all(other)
        counted = await stats(supervisor)

    assert cancelled["result"]["finish_reason"] == "cancelled"
    assert cancelled["result"]["text"] == full_text("p", 10) + rest
    assert text == answer["result"]["text"] == full_text("p", 30)
    assert counted["overall"]["ended"] == {"length": 1}


async def test_the_cancel_of_the_last_client_cancels_the_request(autojump_clock: MockClock) -> None:
    async with memory_supervisor(server=SERVER) as supervisor:
        client = await loaded(supervisor)
        for id in (1, 2):
            await client.generate(id, 5000, idempotency_key="k")
        await trio.sleep(1.0)
        await client.cancel(1)
        await client.cancel(2)
        answers = [await client.receive(), await client.receive()]
        counted = await stats(supervisor)

    assert {answer["result"]["finish_reason"] for answer in answers} == {"cancelled"}
    assert counted["overall"]["ended"] == {"cancelled": 1}


async def test_what_waits_for_its_worker_can_be_attached_to(autojump_clock: MockClock) -> None:
    async with memory_supervisor(Plan(load_s=30.0), server=Server(reattach_s=60.0)) as supervisor:
        first = supervisor.connect()
        await first.generate(1, 3, **KEYED)
        await trio.sleep(10.0)
        await first.leave()
        second, third = supervisor.connect(), supervisor.connect()
        await second.generate(1, 3, **KEYED)
        await third.generate(1, 3, idempotency_key="k")
        text, answer = await receive_all(second)
        assert text == answer["result"]["text"] == full_text("p", 3)
        assert (await third.receive())["result"]["text"] == text
        assert answer["result"]["timings"]["queue_ms"] == pytest.approx(20_500.0, abs=500.0)


async def test_what_has_lost_its_worker_can_be_attached_to(autojump_clock: MockClock) -> None:
    async with memory_supervisor(server=SERVER) as supervisor:
        first = await loaded(supervisor)
        await first.generate(1, 60, **KEYED)
        await receive_pieces(first, 20)
        await first.leave()
        supervisor.shop.workers[0].die(-11)
        await trio.sleep(0.5)
        second = supervisor.connect()
        await second.generate(1, 60, **KEYED)
        text, answer = await receive_all(second)

    assert text == answer["result"]["text"] == full_text("p", 60)
    assert answer["result"]["worker"]["resumed"] == 1


async def test_both_of_one_batch_are_answered(autojump_clock: MockClock) -> None:
    params = {"model": MODEL, "prompt": "p", "max_tokens": 3, "idempotency_key": "k"}
    async with memory_supervisor(server=SERVER) as supervisor:
        client = supervisor.connect()
        calls = [{"jsonrpc": "2.0", "id": id, "method": "generate", "params": params} for id in (1, 2)]
        await client.send(calls)
        (answers,) = await client.finish()
        counted = await stats(supervisor)

    assert sorted(answer["id"] for answer in answers) == [1, 2]
    assert {answer["result"]["text"] for answer in answers} == {full_text("p", 3)}
    assert counted["overall"]["requests_total"] == 1


async def test_a_key_for_another_order_is_refused_by_its_path(autojump_clock: MockClock) -> None:
    async with memory_supervisor(server=SERVER) as supervisor:
        client = supervisor.connect()
        await client.generate(1, 3, idempotency_key="k")
        changes: list[dict[str, Any]] = [
            {"max_tokens": 4},
            {"prompt": "q"},
            {"temperature": 0.1},
            {"stop": "x"},
            {"seed": 1},
        ]
        for changed in changes:
            await client.generate(2, 3, idempotency_key="k", **changed)
            refused = await client.receive()
            assert refused["error"]["data"]["path"] == "$.idempotency_key"
            assert refused["error"]["data"]["kind"] == "invalid_params"
        # What decides nothing of the answer may differ.
        await client.generate(3, 3, idempotency_key="k", priority="high", stream=True, deadline_ms=60_000)
        await client.generate(4, 4, idempotency_key="k", client="another one")
        answers = {answer["id"]: answer for answer in await client.finish() if "id" in answer}

    assert answers[1]["result"]["text"] == answers[3]["result"]["text"] == full_text("p", 3)
    assert answers[4]["result"]["text"] == full_text("p", 4)


async def test_each_has_its_own_deadline_and_the_text_goes_on_for_who_comes_again(
    autojump_clock: MockClock,
) -> None:
    async with memory_supervisor(server=SERVER) as supervisor:
        client = await loaded(supervisor)
        began_s = trio.current_time()
        await client.generate(1, 40, deadline_ms=2000, **KEYED)
        text, late = await receive_all(client)
        assert late["error"]["data"]["kind"] == "deadline_exceeded"
        assert trio.current_time() - began_s == pytest.approx(2.0)
        await client.generate(2, 40, deadline_ms=3000, **KEYED)
        again, answer = await receive_all(client)
        assert trio.current_time() - began_s <= 4.2

    assert full_text("p", 40).startswith(text)
    assert again == answer["result"]["text"] == full_text("p", 40)


async def test_a_request_that_is_refused_leaves_its_key_free(autojump_clock: MockClock) -> None:
    model = Model(batch_sequences_max=1, queue_requests_max=1)
    async with memory_supervisor(server=SERVER, model=model) as supervisor:
        client = await loaded(supervisor)
        for id in (1, 2):
            await client.generate(id, 20)
        await client.generate(3, 5, idempotency_key="k")
        refused = await client.receive()
        assert refused["error"]["data"]["kind"] == "overloaded"
        assert supervisor.service.params_bytes < 300
        for _ in range(2):
            await client.receive()
        await client.generate(4, 7, idempotency_key="k")
        assert (await client.receive())["result"]["text"] == full_text("p", 7)


async def test_params_are_held_as_long_as_their_request_runs_whoever_waits_for_it(
    autojump_clock: MockClock,
) -> None:
    async with memory_supervisor(server=SERVER) as supervisor:
        client = await loaded(supervisor)
        for id in (1, 2, 3):
            await client.generate(id, 5000, prompt="x" * 10_000, idempotency_key="k")
        await trio.sleep(1.0)
        assert 10_000 < supervisor.service.params_bytes < 11_000
        await client.leave()
        assert 10_000 < supervisor.service.params_bytes < 11_000
        await trio.sleep(21.0)
        assert supervisor.service.params_bytes == 0


async def test_a_shutdown_does_not_wait_for_what_nobody_waits_for(autojump_clock: MockClock) -> None:
    async with memory_supervisor(server=Server(reattach_s=1000.0)) as supervisor:
        leaving = await loaded(supervisor)
        staying = supervisor.connect()
        await leaving.generate(1, 100_000, **KEYED)
        await staying.generate(1, 30, idempotency_key="other")
        await receive_pieces(leaving, 3)
        await leaving.leave()
        supervisor.service.shutdown_asked.set()
        await trio.sleep(1.0)
        counted = (await stats(supervisor))["overall"]["ended"]
        await staying.generate(2, 30, idempotency_key="other")
        refused = await staying.receive()
        answer = await staying.receive()

    assert counted == {"cancelled": 1}
    assert refused["error"]["data"]["kind"] == "shutting_down"
    assert answer["result"]["text"] == full_text("p", 30)


async def test_with_no_time_to_come_back_a_client_takes_its_request_with_it(
    autojump_clock: MockClock,
) -> None:
    async with memory_supervisor(server=msgspec.structs.replace(SERVER, reattach_s=0.0)) as supervisor:
        client = await loaded(supervisor)
        await client.generate(1, 5000, **KEYED)
        await receive_pieces(client, 1)
        await client.leave()
        await trio.sleep(0.5)
        counted = await stats(supervisor)

    assert counted["overall"]["ended"] == {"cancelled": 1}


async def test_who_does_not_read_loses_its_connection_and_not_its_text(autojump_clock: MockClock) -> None:
    server = msgspec.structs.replace(SERVER, outbox_bytes_max=64 * 1024)
    prompt, tokens = "p" * 60, 1500
    async with memory_supervisor(server=server) as supervisor:
        await loaded(supervisor)
        slow = supervisor.connect(slow=True)
        await slow.generate(1, tokens, prompt=prompt, **KEYED)
        with trio.fail_after(WAIT_S):
            await slow.served.wait()
        second = supervisor.connect()
        await second.generate(1, tokens, prompt=prompt, **KEYED)
        text, answer = await receive_all(second)

    assert text == answer["result"]["text"] == full_text(prompt, tokens)


async def test_a_batch_of_duplicates_is_given_no_more_than_may_wait_for_a_client(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    server = msgspec.structs.replace(SERVER, outbox_bytes_max=64 * 1024)
    tokens = 1000
    async with memory_supervisor(server=server) as supervisor:
        client = await loaded(supervisor)
        await client.generate(1, tokens, idempotency_key="k")
        assert len((await client.receive_response())["result"]["text"]) > 4096
        params = {"model": MODEL, "prompt": "p", "max_tokens": tokens, "idempotency_key": "k"}
        calls = [
            {"jsonrpc": "2.0", "id": id, "method": "generate", "params": params} for id in range(100, 200)
        ]
        await client.send(calls)
        assert await client.receive_rest() == []
        counted = await stats(supervisor)

    assert 64 // 6 <= counted["keyed"]["duplicates_total"] <= 64 // 4 + 2
    assert sum("does not read" in record.message for record in caplog.records) == 1
