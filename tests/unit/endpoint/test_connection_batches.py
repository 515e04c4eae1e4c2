"""Batches: one frame in, at most one frame of answers out."""

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from mlxsup.config.schema import Server
from mlxsup.protocol.framing import HEADERS, LINES, Framing
from tests.fakes.memory_worker import full_text
from tests.unit.endpoint.in_memory import MODEL, memory_supervisor

both_framings = pytest.mark.parametrize("framing", [LINES, HEADERS], ids=lambda framing: framing.name)


def generate(id: Any, tokens: int, **params: Any) -> dict[str, Any]:
    return {
        "jsonrpc": "2.0",
        "id": id,
        "method": "generate",
        "params": {"model": MODEL, "prompt": "p", "max_tokens": tokens} | params,
    }


@both_framings
async def test_a_batch_is_answered_in_one_frame_once_its_last_request_is(
    autojump_clock: MockClock, framing: Framing
) -> None:
    async with memory_supervisor() as supervisor:
        client = supervisor.connect(framing)
        await client.send(
            [generate("slow", 5), generate("fast", 1), {"jsonrpc": "2.0", "id": 3, "method": "server/info"}]
        )
        (answers,) = await client.finish()

    assert sorted(str(answer["id"]) for answer in answers) == ["3", "fast", "slow"]
    texts = {answer["id"]: answer["result"].get("text") for answer in answers}
    assert (texts["slow"], texts["fast"]) == (full_text("p", 5), full_text("p", 1))


async def test_deltas_of_a_streamed_call_come_before_the_batch_that_answers_it(
    autojump_clock: MockClock,
) -> None:
    async with memory_supervisor() as supervisor:
        client = supervisor.connect()
        await client.send([generate(1, 4, stream=True), generate(2, 1)])
        *deltas, answers = await client.finish()

    assert "".join(delta["params"]["text"] for delta in deltas) == full_text("p", 4)
    assert {delta["params"]["id"] for delta in deltas} == {1}
    assert {answer["id"] for answer in answers} == {1, 2}


async def test_an_id_that_a_batch_has_used_up_can_be_used_again_before_the_batch_is_answered(
    autojump_clock: MockClock,
) -> None:
    async with memory_supervisor() as supervisor:
        client = supervisor.connect(slow=True)
        await client.send([generate("slow", 100), generate(1, 2, stream=True)])
        await trio.sleep(5)
        await client.send(generate(1, 2, stream=True, prompt="new"))
        await trio.sleep(5)
        messages = await client.finish()

    pieces = [message["params"]["text"] for message in messages if "method" in message]
    (first, *_, last) = pieces
    assert (first, last) == ("p0 ", "new0 new1 ")
    assert "".join(pieces) == full_text("p", 2) + full_text("new", 2)


async def test_a_batch_does_not_hold_up_what_stands_behind_it(autojump_clock: MockClock) -> None:
    async with memory_supervisor() as supervisor:
        client = supervisor.connect()
        await client.send([generate(1, 50)], {"jsonrpc": "2.0", "id": 2, "method": "server/info"})
        assert (await client.receive())["id"] == 2
        assert [answer["id"] for answer in await client.receive()] == [1]


async def test_an_id_twice_in_a_batch_is_answered_twice_once_as_refused(autojump_clock: MockClock) -> None:
    async with memory_supervisor() as supervisor:
        client = supervisor.connect()
        await client.send([generate(1, 2), generate(1, 3), generate(2, 1)])
        (answers,) = await client.finish()

    refused, *rest = sorted(answers, key=lambda answer: "result" in answer)
    assert (refused["id"], refused["error"]["code"]) == (1, -32600)
    assert {answer["id"]: answer["result"]["text"] for answer in rest} == {
        1: full_text("p", 2),
        2: full_text("p", 1),
    }


async def test_a_call_of_a_batch_can_be_cancelled_and_the_batch_is_still_complete(
    autojump_clock: MockClock,
) -> None:
    async with memory_supervisor() as supervisor:
        client = supervisor.connect()
        await client.send([generate(1, 10_000), generate(2, 1)])
        await client.cancel(1)
        (answers,) = await client.finish()

    assert {answer["id"]: answer["result"]["finish_reason"] for answer in answers} == {
        1: "cancelled",
        2: "length",
    }


async def test_a_batch_of_refusals_is_one_frame_too(autojump_clock: MockClock) -> None:
    async with memory_supervisor() as supervisor:
        client = supervisor.connect()
        await client.send(
            b'[1, {"jsonrpc": "2.0", "id": 2, "method": "none"}, {"jsonrpc": "1.0", "id": 3, "method": "m"}]'
        )
        (answers,) = await client.finish()

    assert [(answer["id"], answer["error"]["code"]) for answer in answers] == [
        (None, -32600),
        (2, -32601),
        (3, -32600),
    ]


async def test_a_batch_over_the_limit_gets_one_refusal_and_runs_nothing(autojump_clock: MockClock) -> None:
    async with memory_supervisor(server=Server(batch_calls_max=2)) as supervisor:
        client = supervisor.connect()
        await client.send([generate(id, 1) for id in range(3)])
        (refusal,) = await client.finish()

    assert (refusal["id"], refusal["error"]["code"]) == (None, -32600)
    assert supervisor.shop.workers == []


async def test_a_batch_of_notifications_gets_no_frame_and_is_obeyed(autojump_clock: MockClock) -> None:
    async with memory_supervisor() as supervisor:
        client = supervisor.connect()
        await client.generate(1, 10_000)
        await client.send(
            [
                {"jsonrpc": "2.0", "method": "server/info"},
                {"jsonrpc": "2.0", "method": "$/cancelRequest", "params": {"id": 1}},
            ]
        )
        (answer,) = await client.finish()

    assert answer["result"]["finish_reason"] == "cancelled"
