"""How a connection ends, and what is then left: on the mock clock, in memory."""

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from mlxsup.config.schema import Server
from mlxsup.protocol.framing import HEADERS, LINES, Framing
from tests.fakes.memory_worker import Plan, full_text
from tests.unit.endpoint.in_memory import WAIT_S, MemoryClient, MemorySupervisor, memory_supervisor

both_framings = pytest.mark.parametrize("framing", [LINES, HEADERS], ids=lambda framing: framing.name)

KIB = 1024


async def counters(supervisor: MemorySupervisor) -> Any:
    client = supervisor.connect()
    await client.request(1, "server/stats")
    (answer,) = await client.finish()
    return answer["result"]["overall"]


@both_framings
async def test_the_end_of_input_still_answers_what_was_asked_and_then_closes(
    autojump_clock: MockClock, framing: Framing
) -> None:
    async with memory_supervisor() as supervisor:
        client = supervisor.connect(framing)
        for id in range(5):
            await client.generate(id, 1 + id)
        answers = await client.finish()
        await client.served.wait()

    assert {answer["id"]: answer["result"]["text"] for answer in answers} == {
        id: full_text("p", 1 + id) for id in range(5)
    }


async def test_a_client_that_says_nothing_and_ends_gets_nothing(autojump_clock: MockClock) -> None:
    async with memory_supervisor() as supervisor:
        assert await supervisor.connect().finish() == []


@both_framings
async def test_a_last_frame_that_is_cut_off_is_answered_as_what_it_is(
    autojump_clock: MockClock, framing: Framing
) -> None:
    async with memory_supervisor() as supervisor:
        client = supervisor.connect(framing)
        await client.generate(1)
        await client.send_bytes(framing.encode(b'{"jsonrpc": "2.0", "id": 2, "met')[:-3])
        answers = await client.finish()

    assert sorted((answer["id"] is None, "error" in answer) for answer in answers) == [
        (False, False),
        (True, True),
    ]


async def test_the_last_line_needs_no_newline(autojump_clock: MockClock) -> None:
    async with memory_supervisor() as supervisor:
        client = supervisor.connect()
        await client.send_bytes(b'{"jsonrpc": "2.0", "id": 2, "method": "server/info"}')
        (answer,) = await client.finish()

    assert "result" in answer


@pytest.mark.parametrize("plan", [Plan(), Plan(load_s=100.0)], ids=["running", "waiting"])
async def test_a_client_that_leaves_takes_its_requests_with_it_and_no_others(
    autojump_clock: MockClock, plan: Plan
) -> None:
    async with memory_supervisor(plan) as supervisor:
        leaving, staying = supervisor.connect(), supervisor.connect()
        for id in range(3):
            await leaving.generate(id, 5000)
        await staying.generate(1, 5)
        await trio.sleep(5)
        await leaving.leave()
        answer = await staying.receive()
        await trio.sleep(5)
        counted = await counters(supervisor)

    assert answer["result"]["text"] == full_text("p", 5)
    assert counted["ended"] == {"cancelled": 3, "length": 1}


async def test_a_client_that_ends_its_input_and_then_leaves_is_noticed(autojump_clock: MockClock) -> None:
    async with memory_supervisor() as supervisor:
        client = supervisor.connect()
        await client.generate(1, 100_000)
        await client.end_input()
        await trio.sleep(5)
        started_s = trio.current_time()
        await client.leave()
        assert trio.current_time() - started_s < 1.0


async def test_a_method_that_runs_for_a_client_who_left_is_cancelled(autojump_clock: MockClock) -> None:
    cancelled = trio.Event()

    async def run(_: object, __: object) -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with memory_supervisor() as supervisor:
        supervisor.service.handlers["server/health"] = run
        client = supervisor.connect()
        await client.request(1, "server/health")
        await trio.testing.wait_all_tasks_blocked()
        assert not cancelled.is_set()
        await client.leave()
        assert cancelled.is_set()


@both_framings
async def test_an_oversize_frame_is_refused_and_the_connection_lives_on(
    autojump_clock: MockClock, framing: Framing
) -> None:
    async with memory_supervisor(server=Server(frame_bytes_max=4 * KIB)) as supervisor:
        client = supervisor.connect(framing)
        await client.request(1, "server/info")
        await client.send(b'"' + b"x" * 4 * KIB + b'"')
        await client.request(2, "server/info")
        answers = await client.finish()

    refusal = next(answer for answer in answers if answer["id"] is None)
    assert (refusal["error"]["code"], refusal["error"]["data"]["kind"]) == (-32008, "limit_exceeded")
    assert "4096 bytes" in refusal["error"]["message"]
    assert sorted(answer["id"] for answer in answers if "result" in answer) == [1, 2]


@pytest.mark.parametrize(
    "garbage", [b"{", b"\xff\xfe", b"[" * 5000, b"\x00" * 100, b"HTTP/1.1 200 OK", b"}{"], ids=ascii
)
async def test_after_garbage_the_next_line_is_read_as_usual(
    autojump_clock: MockClock, garbage: bytes
) -> None:
    async with memory_supervisor() as supervisor:
        client = supervisor.connect()
        await client.send(garbage)
        await client.request(1, "server/info")
        refusal, answer = sorted(await client.finish(), key=lambda answer: "result" in answer)

    assert (refusal["id"], refusal["error"]["code"]) == (None, -32700)
    assert answer["id"] == 1


async def test_a_header_that_cannot_be_read_ends_the_connection_with_an_error_after_all_answers(
    autojump_clock: MockClock,
) -> None:
    async with memory_supervisor() as supervisor:
        client = supervisor.connect(HEADERS)
        await client.generate(1, 3)
        await client.send_bytes(b"Content-Length: many\r\n\r\n")
        await client.request(2, "server/info")
        refusal, answer = sorted(await client.receive_rest(), key=lambda answer: "result" in answer)

    assert (refusal["id"], refusal["error"]["code"]) == (None, -32700)
    assert "Content-Length" in refusal["error"]["data"]["detail"]
    assert answer["result"]["text"] == full_text("p", 3)


async def test_a_client_that_never_reads_is_closed_at_its_bound_and_no_other_is(
    autojump_clock: MockClock,
) -> None:
    async with memory_supervisor(server=Server(outbox_bytes_max=64 * KIB)) as supervisor:
        stuck, other = supervisor.connect(slow=True), supervisor.connect()
        await other.generate(1, 300, stream=True)
        for id in range(2):
            await stuck.generate(id, 20_000, stream=True)
        with trio.fail_after(WAIT_S):
            await stuck.served.wait()
        messages = await other.finish()
        await trio.sleep(1)
        counted = await counters(supervisor)

    assert messages[-1]["result"]["text"] == full_text("p", 300)
    assert counted["ended"] == {"length": 1, "cancelled": 2}


async def test_a_client_that_reads_late_gets_few_large_deltas_and_holds_up_nobody(
    autojump_clock: MockClock,
) -> None:
    async with memory_supervisor() as supervisor:
        late, prompt = supervisor.connect(slow=True), supervisor.connect()
        await late.generate(1, 500, stream=True)
        await prompt.generate(1, 500, stream=True)
        on_time = await prompt.finish()
        await trio.sleep(100)
        messages = await late.finish()

    assert len(on_time) > 500
    assert len(messages) < 10
    *deltas, answer = messages
    assert (
        "".join(delta["params"]["text"] for delta in deltas)
        == answer["result"]["text"]
        == full_text("p", 500)
    )


async def shut_down(client: MemoryClient) -> None:
    await client.request("down", "server/shutdown")
    assert (await client.receive_response())["id"] == "down"


async def test_after_a_shutdown_was_asked_for_requests_for_text_are_refused(
    autojump_clock: MockClock,
) -> None:
    async with memory_supervisor() as supervisor:
        client = supervisor.connect()
        await shut_down(client)
        await client.generate(1)
        refusal = await client.receive()

    assert (refusal["id"], refusal["error"]["code"], refusal["error"]["data"]["retriable"]) == (
        1,
        -32010,
        True,
    )


@pytest.mark.parametrize("model", ["nothing", "owner/nothing"])
async def test_a_model_that_is_not_here_is_told_without_a_path_of_the_host(
    autojump_clock: MockClock, model: str
) -> None:
    async with memory_supervisor() as supervisor:
        client = supervisor.connect()
        await client.request(1, "model/load", {"model": model})
        await client.request(2, "tokenize", {"model": model, "text": "x"})
        await client.generate(3, model=model)
        answers = await client.finish()

    assert sorted((answer["id"], answer["error"]["code"]) for answer in answers) == [
        (1, -32001),
        (2, -32001),
        (3, -32001),
    ]
    for answer in answers:
        assert "/cache" not in str(answer)
