"""A worker is replaced while texts are made, and none of them loses anything; and a spare takes over from one that died."""

from collections.abc import Awaitable, Callable
from typing import Any

import psutil
import pytest
import trio

from mlxsup.protocol.client.aio import Client
from mlxsup.protocol.generation import ServedBy
from scripts.faulty_worker.answers import faulty_text
from scripts.faulty_worker.script import Fault, FaultKind, Script
from tests.process.recovery.asking import ask, endless, entry, state
from tests.process.recovery.conftest import StartStand
from tests.process.recovery.setting import ONE, OTHER
from tests.process.recovery.stand import Stand

pytestmark = pytest.mark.slow

TOKENS = 200
STREAMS = 8
MIB = 1 << 20


class Load:
    """Texts without a pause, `STREAMS` at a time, until a worker of the second generation has made one."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._ending = False
        self.texts: list[str] = []
        self.expected: list[str] = []
        self.served_by: list[ServedBy | None] = []

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(STREAMS):
                nursery.start_soon(self._run_one, number)

    async def _run_one(self, seed: int) -> None:
        while ServedBy(generation=2) not in self.served_by:
            answer = await ask(self._client, Script(seed=seed, token_ms=1), TOKENS)
            self.texts.append(answer.text)
            self.expected.append(faulty_text(seed, TOKENS))
            self.served_by.append(answer.result.worker)
            seed += STREAMS


async def recycle_by_hand(stand: Stand) -> None:
    await trio.to_thread.run_sync(stand.mlxsup, "recycle", ONE)


async def wait(_: Stand) -> None:
    """It comes by itself."""


@pytest.mark.parametrize(
    ("recovery", "provoke"),
    [({}, recycle_by_hand), ({"recycle_requests": 20}, wait), ({"recycle_tokens": 4000}, wait)],
    ids=["mlxsup recycle", "after requests", "after tokens"],
)
async def test_a_recycle_under_load_loses_no_token_and_no_request(
    start: StartStand, recovery: dict[str, Any], provoke: Callable[[Stand], Awaitable[None]]
) -> None:
    stand = start(recovery=recovery)
    async with stand.watched() as (client, watch):
        load = Load(client)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(load.run)
            first = await _pid_once_ready(client)
            await provoke(stand)
            await watch.until(state("ready"), count=2)
            second = (await entry(client)).pid
        told = watch.of("death")
    stand.end()

    assert load.texts == load.expected
    # Nothing was even interrupted: what the first worker had begun it completed.
    assert {(by.generation, by.resumed) for by in load.served_by if by} >= {(1, 0), (2, 0)}
    assert {by.resumed for by in load.served_by if by} == {0}
    assert first != second
    assert not psutil.pid_exists(first)
    assert told == []
    assert stand.deaths() == []


async def _pid_once_ready(client: Client) -> int:
    await client.call("model/load", {"model": ONE})
    pid = (await entry(client)).pid
    assert pid is not None
    return pid


async def test_a_worker_that_leaks_is_replaced_and_one_that_does_not_is_not(start: StartStand) -> None:
    bounds = {"leak_bytes_per_hour_max": 3600 * MIB, "leak_window_s": 6.0}
    stand = start(worker={"heartbeat_interval_s": 0.05}, recovery=bounds)
    leaking = Script(seed=1, token_ms=2, fault=Fault(kind=FaultKind.LEAK, number=64 * 1024))
    async with stand.watched() as (client, watch):
        async with (
            client.stream("generate", endless(ONE, leaking)) as one,
            client.stream("generate", endless(OTHER, Script(seed=2, token_ms=2))) as other,
        ):
            await watch.until(state("ready"), count=2)
            for stream in (one, other):
                stream.cancel()
            texts = ["".join([piece async for piece in stream]) for stream in (one, other)]
        last = await ask(client, Script(seed=3), 10)
        kept = await entry(client, OTHER)
    stand.end()

    for stream, text, seed in zip((one, other), texts, (1, 2), strict=True):
        assert stream.result is not None
        assert text == faulty_text(seed, stream.result.usage.completion_tokens)
        assert stream.result.worker == ServedBy(generation=1)
    assert last.result.worker == ServedBy(generation=2)
    assert kept.generation == 1
    assert "one: recycling the worker: it leaks" in stand.log_text
    assert stand.deaths() == []


async def test_a_spare_takes_over_from_a_worker_that_died_and_has_a_successor(start: StartStand) -> None:
    stand = start(worker={"spares": 1})
    async with stand.client() as client:
        first = await _pid_once_ready(client)
        spare = await _spare(stand, 1)
        abort = Fault(kind=FaultKind.ABORT, at_token=10, times=1)
        answer = await ask(client, Script(seed=1, fault=abort), 30)
        second = (await entry(client)).pid
        next_spare = await _spare(stand, 2)
        children = {child.pid for child in stand.children()}
    stand.end()

    (strike,) = stand.strikes
    assert strike.pid == first
    # It was there, its imports done, before anybody died.
    assert second == spare
    assert answer.text == faulty_text(1, 30)
    assert children == {second, next_spare}


async def _spare(stand: Stand, count: int) -> int:
    """The pid of the `count`-th spare, once it waits for a model."""
    found = await trio.to_thread.run_sync(
        lambda: stand.wait_logged(r"spare worker (\d+) is ready", count=count)
    )
    return int(found[1])
