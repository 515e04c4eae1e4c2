"""Embeddings of a worker that dies in the middle of them: they are begun again, and nobody sees it; but not for ever."""

import signal

import pytest
import trio

from mlxsup.protocol.client.aio import Client
from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.service import EmbedResult, Stats
from scripts.faulty_worker.answers import faulty_text
from scripts.faulty_worker.engine import faulty_embedding
from scripts.faulty_worker.script import Fault, FaultKind, Script
from tests.process.recovery.asking import ask
from tests.process.recovery.conftest import StartStand
from tests.process.recovery.setting import LIMIT_S, ONE

pytestmark = pytest.mark.slow

TEXTS = 12
TOKENS = 40


def scripts(fault: Fault | None) -> list[str]:
    """The fault is in the middle."""
    middle = TEXTS // 2
    return [
        Script(seed=seed, token_ms=1, fault=fault if seed == middle else None).prompt()
        for seed in range(TEXTS)
    ]


async def embed(client: Client, fault: Fault | None = None) -> EmbedResult:
    with trio.fail_after(LIMIT_S):
        result: EmbedResult = await client.call("embed", {"model": ONE, "input": scripts(fault)})
    return result


async def test_they_come_whole_though_the_worker_is_killed_in_their_middle(start: StartStand) -> None:
    kill = Fault(kind=FaultKind.SIGNAL, number=signal.SIGKILL, times=1)
    found: list[EmbedResult] = []
    texts: list[str] = []
    stand = start()
    async with stand.client() as client:

        async def beside() -> None:
            texts.append((await ask(client, Script(seed=3, token_ms=1), TOKENS)).text)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(beside)
            found.append(await embed(client, kill))
        found.append(await embed(client))
        stats: Stats = await client.call("server/stats")
    stand.end()

    for result in found:
        assert result.embeddings == [faulty_embedding(seed) for seed in range(TEXTS)]
    assert texts == [faulty_text(3, TOKENS)]
    assert stats.overall.requests_resumed >= 1
    assert [death["death_class"] for death in stand.deaths()] == ["killed"]


async def test_those_that_kill_each_worker_are_refused_in_the_end(start: StartStand) -> None:
    crash = Fault(kind=FaultKind.SEGFAULT)
    async with start().client() as client:
        kinds = []
        for _ in range(2):
            with pytest.raises(RpcError) as raised:
                await embed(client, crash)
            kinds.append(raised.value.kind)
        innocent = await embed(client)

    assert kinds == [ErrorKind.QUARANTINED] * 2
    assert len(innocent.embeddings) == TEXTS
