"""`server/health` is what a load balancer asks: ready means that a request would be served."""

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from mlxsup.config.schema import Model, Recovery
from mlxsup.protocol.errors import ErrorKind, RpcError
from tests.fakes.memory_worker import Plan
from tests.unit.endpoint.in_memory import MODEL, MemoryClient, load, memory_supervisor


async def ask(client: MemoryClient) -> tuple[bool, dict[str, Any]]:
    await client.request("health", "server/health")
    result = (await client.receive_response())["result"]
    return result["ready"], result["models"][MODEL]


async def test_a_model_that_would_be_loaded_for_a_request_is_ready(autojump_clock: MockClock) -> None:
    async with memory_supervisor() as supervisor:
        ready, model = await ask(supervisor.connect())

    assert ready
    assert model == {
        "state": "stopped",
        "reason": None,
        "ready": True,
        "switched_off": [],
        "self_test": None,
    }


async def test_when_the_only_model_is_quarantined_nothing_is_ready_until_it_is_loaded_by_hand(
    autojump_clock: MockClock,
) -> None:
    async with memory_supervisor(recovery=Recovery(restarts_max=0)) as supervisor:
        client = supervisor.connect()
        await client.generate(1, 1000)
        await trio.sleep(10)
        supervisor.shop.workers[-1].die(-11)
        assert "error" in await client.receive_response()
        ready, model = await ask(client)
        await load(client)
        loaded, _ = await ask(client)

    assert not ready
    assert (model["state"], model["ready"]) == ("quarantined", False)
    assert "died too often" in model["reason"]
    assert loaded


async def test_when_the_only_model_cannot_be_loaded_nothing_is_ready(autojump_clock: MockClock) -> None:
    plan = Plan(load_error=RpcError(ErrorKind.MODEL_LOAD_FAILED, "no weights"))
    async with memory_supervisor(plan) as supervisor:
        client = supervisor.connect()
        await client.generate(1)
        assert "error" in await client.receive_response()
        ready, model = await ask(client)

    assert not ready
    assert (model["state"], model["reason"], model["ready"]) == ("failed", "no weights", False)


@pytest.mark.parametrize(("action", "expected"), [("force_open", False), ("reset", True), ("disable", True)])
async def test_an_open_breaker_refuses_so_the_model_is_not_ready_though_its_worker_is(
    autojump_clock: MockClock, action: str, *, expected: bool
) -> None:
    async with memory_supervisor() as supervisor:
        client = supervisor.connect()
        await load(client)
        await client.request("breaker", "model/breaker", {"model": MODEL, "action": action})
        await client.receive_response()
        ready, model = await ask(client)

    assert ready is model["ready"] is expected
    assert model["state"] == "ready"
    assert (model["reason"] is None) is expected


async def test_one_model_of_two_is_enough(autojump_clock: MockClock) -> None:
    async with memory_supervisor(others={"n": Model(source="/n")}) as supervisor:
        client = supervisor.connect()
        await client.request("breaker", "model/breaker", {"model": MODEL, "action": "force_open"})
        await client.receive_response()
        ready, model = await ask(client)

    assert ready
    assert not model["ready"]
