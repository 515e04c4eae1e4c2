"""What one client gets for what it asks: on the mock clock, in memory."""

import logging
from typing import Any

import pytest
from trio.testing import MockClock

from mlxsup.config.schema import Model, Server
from mlxsup.protocol.framing import HEADERS, LINES, Framing
from mlxsup.protocol.service import NoParams
from tests.fakes.memory_worker import full_text
from tests.unit.endpoint.in_memory import load, memory_supervisor

both_framings = pytest.mark.parametrize("framing", [LINES, HEADERS], ids=lambda framing: framing.name)


def deltas_of(messages: list[Any], id: Any) -> list[str]:
    return [
        m["params"]["text"] for m in messages if m.get("method") == "stream/delta" and m["params"]["id"] == id
    ]


@both_framings
async def test_a_request_is_answered_under_its_id_with_its_text(
    autojump_clock: MockClock, framing: Framing
) -> None:
    async with memory_supervisor() as supervisor:
        client = supervisor.connect(framing)
        await client.generate("a", 3)
        (answer,) = await client.finish()

    assert answer["id"] == "a"
    assert answer["result"]["text"] == full_text("p", 3)
    assert answer["result"]["finish_reason"] == "length"


@both_framings
async def test_the_deltas_of_a_stream_join_to_its_text_and_all_come_before_its_response(
    autojump_clock: MockClock, framing: Framing
) -> None:
    async with memory_supervisor() as supervisor:
        client = supervisor.connect(framing)
        await client.generate(1, 5, stream=True)
        await client.generate(2, 3)
        messages = await client.finish()

    (end,) = [place for place, message in enumerate(messages) if message.get("id") == 1]
    assert "".join(deltas_of(messages[:end], 1)) == messages[end]["result"]["text"] == full_text("p", 5)
    assert deltas_of(messages[end:], 1) == []
    assert deltas_of(messages, 2) == []


@pytest.mark.parametrize("id", [0, -1, 2**53 - 1, "", "1", "é", None], ids=repr)
async def test_an_id_comes_back_as_it_was_sent(autojump_clock: MockClock, id: Any) -> None:
    async with memory_supervisor() as supervisor:
        client = supervisor.connect()
        await client.request(id, "server/info")
        await client.generate(id if id is None else f"not {id}")
        await client.generate(id)
        answers = await client.finish()

    assert sum((answer["id"], type(answer["id"])) == (id, type(id)) for answer in answers) == (
        3 if id is None else 2
    )


@pytest.mark.parametrize(
    "method", ["server/inf", "", "rpc.nothing", "$/cancelRequest", "stream/delta", "x" * 10_000]
)
async def test_a_method_that_is_not_there_is_told_and_the_others_go_on(
    autojump_clock: MockClock, method: str
) -> None:
    async with memory_supervisor() as supervisor:
        client = supervisor.connect()
        await client.request(1, method)
        await client.request(2, "server/health")
        first, second = await client.finish()

    assert (first["id"], first["error"]["code"], first["error"]["message"]) == (1, -32601, "Method not found")
    assert len(first["error"]["data"]["detail"]) < 200
    assert second["result"]["live"] is True


async def test_a_bad_param_is_told_by_its_path(autojump_clock: MockClock) -> None:
    async with memory_supervisor() as supervisor:
        client = supervisor.connect()
        await client.generate(1, temprature=1)
        await client.generate(2, temperature=9)
        answers = await client.finish()

    assert [answer["error"]["code"] for answer in answers] == [-32602, -32602]
    assert [answer["error"]["data"]["path"] for answer in answers] == ["$.temprature", "$.temperature"]
    assert "did you mean `temperature`" in answers[0]["error"]["message"]


@pytest.mark.parametrize("loaded", [True, False], ids=["running", "waiting"])
async def test_a_second_request_with_an_id_in_flight_is_refused_and_the_first_goes_on(
    autojump_clock: MockClock, loaded: bool
) -> None:
    async with memory_supervisor() as supervisor:
        client = supervisor.connect()
        if loaded:
            await load(client)
        await client.generate(7, 4)
        await client.request(7, "server/info")
        await client.generate(7, 2)
        answers = await client.finish()

    assert [answer["id"] for answer in answers] == [7, 7, 7]
    assert [answer["error"]["code"] for answer in answers[:2]] == [-32600, -32600]
    assert answers[2]["result"]["text"] == full_text("p", 4)


async def test_an_id_may_be_used_again_once_it_is_answered(autojump_clock: MockClock) -> None:
    async with memory_supervisor() as supervisor:
        client = supervisor.connect()
        for tokens in (2, 3):
            await client.generate(1, tokens)
            assert (await client.receive())["result"]["text"] == full_text("p", tokens)


async def test_one_request_too_many_in_flight_is_refused_until_another_is_answered(
    autojump_clock: MockClock,
) -> None:
    async with memory_supervisor(server=Server(in_flight_requests_max=2)) as supervisor:
        client = supervisor.connect()
        for id in (1, 2, 3):
            await client.generate(id, id)
        refused = await client.receive()
        first = await client.receive()
        await client.generate(4, 1)
        rest = await client.finish()

    assert (refused["id"], refused["error"]["code"]) == (3, -32008)
    assert refused["error"]["data"] == {"kind": "limit_exceeded", "retriable": True}
    assert first["result"]["text"] == full_text("p", 1)
    assert sorted(answer["id"] for answer in rest if "result" in answer) == [2, 4]


async def test_a_limit_in_flight_is_each_clients_own(autojump_clock: MockClock) -> None:
    async with memory_supervisor(server=Server(in_flight_requests_max=1)) as supervisor:
        clients = [supervisor.connect() for _ in range(3)]
        for client in clients:
            await client.generate(1)
        for client in clients:
            assert "result" in await client.receive()


async def test_notifications_are_never_answered_whatever_they_say(autojump_clock: MockClock) -> None:
    async with memory_supervisor() as supervisor:
        client = supervisor.connect()
        for method in ("server/info", "generate", "nothing", "$/cancelRequest", "server/shutdown"):
            for params in ({}, {"unknown": 1}, {"id": "never sent"}, {"id": [1]}, [1, 2, 3]):
                await client.notify(method, params)
        await client.request(1, "server/health")
        (answer,) = await client.finish()

    assert answer["result"]["ready"] is True
    assert not supervisor.service.shutdown_asked.is_set()


async def test_a_defect_of_a_method_answers_one_request_without_its_text(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(_: NoParams, __: object) -> None:
        raise RuntimeError("at /home/somebody/secret")

    async with memory_supervisor() as supervisor:
        supervisor.service.handlers["server/health"] = fail
        client = supervisor.connect()
        await client.request(1, "server/health")
        await client.request(2, "server/info")
        first, second = sorted(await client.finish(), key=lambda answer: answer["id"])

    assert (first["id"], first["error"]["code"]) == (1, -32603)
    assert "secret" not in str(first)
    assert "result" in second
    assert [record.levelno for record in caplog.records if record.exc_info] == [logging.ERROR]


async def test_a_defect_of_the_way_to_a_model_answers_one_request_too(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("at /home/somebody/secret")

    async with memory_supervisor() as supervisor:
        monkeypatch.setattr(supervisor.service.texts, "generate", fail)
        client = supervisor.connect()
        await client.generate(1)
        await client.request(2, "server/info")
        first, second = await client.finish()

    assert (first["id"], first["error"]["code"]) == (1, -32603)
    assert "secret" not in str(first)
    assert "result" in second


async def test_a_result_that_cannot_be_written_as_json_answers_its_request_as_a_defect(
    autojump_clock: MockClock,
) -> None:
    async def name_a_file(_: NoParams, __: object) -> str:
        return "\udcff"

    async with memory_supervisor() as supervisor:
        supervisor.service.handlers["server/health"] = name_a_file
        client = supervisor.connect()
        await client.request(1, "server/health")
        await client.request(2, "server/info")
        answers = {answer["id"]: answer for answer in await client.finish()}

    assert answers[1]["error"]["code"] == -32603
    assert "result" in answers[2]


async def test_events_come_for_subscribed_topics_and_only_to_who_subscribed(
    autojump_clock: MockClock,
) -> None:
    async with memory_supervisor() as supervisor:
        subscribed, other, elsewhere = (supervisor.connect() for _ in range(3))
        await subscribed.request(1, "server/subscribe", {"topics": ["worker"]})
        await elsewhere.request(1, "server/subscribe", {"topics": ["death"]})
        assert (await subscribed.receive())["result"] == {"topics": ["worker"]}
        assert (await elsewhere.receive())["result"] == {"topics": ["death"]}
        await other.generate(1)
        (answer,) = await other.finish()
        events = [event["params"] for event in await subscribed.finish()]
        assert await elsewhere.finish() == []

    assert "result" in answer
    assert [event["what"] for event in events if event["topic"] == "worker"][:3] == [
        "spawning",
        "loading",
        "ready",
    ]
    assert {event["topic"] for event in events} == {"worker"}


async def test_a_request_refused_by_a_full_queue_is_answered_and_not_in_flight(
    autojump_clock: MockClock,
) -> None:
    async with memory_supervisor(model=Model(queue_requests_max=1)) as supervisor:
        client = supervisor.connect()
        await client.generate(1, 1)
        await client.generate(2, 1)
        refused = await client.receive()
        assert (refused["id"], refused["error"]["code"]) == (2, -32004)
        assert refused["error"]["data"]["retry_after_ms"] > 0
        assert (await client.receive())["id"] == 1
        await client.generate(2, 1)
        assert "result" in await client.receive()
