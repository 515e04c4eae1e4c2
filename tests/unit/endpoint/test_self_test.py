"""`model/selftest`, and where its result is seen."""

from typing import Any

import msgspec
from trio.testing import MockClock

from mlxsup.protocol.self_test import Check, SelfTestResult
from tests.fakes.memory_worker import Plan
from tests.unit.endpoint.in_memory import MODEL, MemoryClient, memory_supervisor

RESULT = SelfTestResult(
    checks=[Check(feature="speculation", outcome="switched_off", tokens=2, seconds=0.5, why="another text")],
    seconds=1.0,
)


async def ask(client: MemoryClient, method: str, params: dict[str, Any] | None = None) -> Any:
    await client.request(method, method, params)
    return (await client.receive_response())["result"]


async def test_the_model_is_loaded_and_its_result_told_and_shown_wherever_its_state_is(
    autojump_clock: MockClock,
) -> None:
    async with memory_supervisor(Plan(self_test=RESULT)) as supervisor:
        client = supervisor.connect()
        found = await ask(client, "model/selftest", {"model": MODEL})
        health = await ask(client, "server/health")
        listed = await ask(client, "model/list")

    assert found == msgspec.to_builtins(RESULT)
    model = health["models"][MODEL]
    assert (model["ready"], model["reason"]) == (True, None)
    (entry,) = (each for each in listed["models"] if each["name"] == MODEL)
    for shown in (model, entry):
        assert shown["switched_off"] == ["speculation"]
        assert shown["self_test"] == found


async def test_whoever_subscribes_is_told(autojump_clock: MockClock) -> None:
    async with memory_supervisor(Plan(self_test=RESULT)) as supervisor:
        client = supervisor.connect()
        await ask(client, "server/subscribe", {"topics": ["model"]})
        await client.request("load", "model/load", {"model": MODEL})
        frame: dict[str, Any] = {}
        while frame.get("method") != "event":
            frame = await client.receive()

    assert (frame["params"]["model"], frame["params"]["what"]) == (MODEL, "self_test")
    assert frame["params"]["detail"] == msgspec.to_builtins(RESULT)
