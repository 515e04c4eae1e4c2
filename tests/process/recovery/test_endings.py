"""How workers end, and that nothing of them is left: no process, no zombie, no grandchild, no memory."""

import json

import psutil
import pytest
import trio

from scripts.faulty_worker.answers import faulty_text
from scripts.faulty_worker.faults import METAL_WORDS
from scripts.faulty_worker.script import Fault, FaultKind, Script
from tests.process.recovery.asking import ask, death, entry, state
from tests.process.recovery.conftest import StartStand
from tests.process.recovery.hangs import SILENCE_S
from tests.process.recovery.setting import LIMIT_S, ONE

pytestmark = pytest.mark.slow

MIB = 1 << 20
_POLL_S = 0.01


async def test_a_worker_that_ignores_sigterm_and_hangs_is_killed_and_nothing_is_left(
    start: StartStand,
) -> None:
    stand = start("--load", Fault(kind=FaultKind.IGNORE_TERM).encode(), recovery={"silence_s": SILENCE_S})
    async with stand.watched() as (client, watch):
        hang = Fault(kind=FaultKind.HANG_WITH_GIL, at_token=10, times=1, name="hang")
        answer = await ask(client, Script(seed=3, fault=hang), 30)
        (died,) = watch.of("death")
        (hung,) = (strike.pid for strike in stand.strikes if strike.name == "hang")
        serving = (await entry(client)).pid
        children = stand.children()

    assert answer.text == faulty_text(3, 30)
    assert (died.what, died.detail["signal"], died.detail["pid"]) == ("hung", "SIGKILL", hung)
    assert f"killing worker {hung}" in stand.log_text
    # A zombie would be one of them.
    assert [child.pid for child in children] == [serving]
    stand.end()


async def test_a_grandchild_that_keeps_the_pipes_open_ends_with_its_worker_and_delays_nobody(
    start: StartStand,
) -> None:
    fork = Fault(kind=FaultKind.GRANDCHILD, times=1, name="fork")
    stand = start("--load", fork.encode())
    async with stand.watched() as (client, watch):
        abort = Fault(kind=FaultKind.ABORT, at_token=10, times=1, name="abort")
        answer = await ask(client, Script(seed=3, fault=abort), 30)
        (died_s,) = watch.moments(death())
    stand.end()

    forked, aborted = stand.strikes
    assert answer.text == faulty_text(3, 30)
    assert forked.grandchild is not None
    await until_gone(forked.grandchild)
    # It would have lived for two minutes.
    assert died_s - aborted.at_s < LIMIT_S / 3


async def until_gone(pid: int) -> None:
    """Nobody may adopt it, and then a zombie is all that can be left."""
    with trio.fail_after(LIMIT_S):
        while (  # noqa: ASYNC110  (the kernel tells of the ends of children only)
            psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        ):
            await trio.sleep(_POLL_S)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind=FaultKind.ABORT),
        Fault(kind=FaultKind.HANG_WITH_GIL),
        Fault(kind=FaultKind.STOP),
        Fault(kind=FaultKind.GARBAGE),
    ],
    ids=lambda fault: fault.kind,
)
async def test_whatever_a_worker_does_when_it_is_to_end_the_supervisor_ends_in_order(
    start: StartStand, fault: Fault
) -> None:
    stand = start("--shutdown", fault.encode(), worker={"exit_grace_s": 0.3})
    async with stand.client() as client:
        await ask(client, Script(seed=1), 1)

    stand.end()
    assert len(stand.strikes) == 1
    assert stand.deaths() == []


async def test_a_worker_that_dies_while_nobody_wants_anything_is_replaced(start: StartStand) -> None:
    stand = start("--only", ONE, "--idle", Fault(kind=FaultKind.ABORT, times=1).encode(), "--idle-ms", "50")
    async with stand.watched() as (client, watch):
        await client.call("model/load", {"model": ONE})
        died = await watch.until(death())
        await watch.until(state("ready"), count=2)
        answer = await ask(client, Script(seed=3), 10)

    assert died.detail["phase"] == "ready"
    assert answer.text == faulty_text(3, 10)
    assert answer.result.worker is not None
    assert (answer.result.worker.generation, answer.result.worker.resumed) == (2, 0)


async def test_workers_that_die_before_they_say_hello_are_replaced(start: StartStand) -> None:
    stand = start("--start", Fault(kind=FaultKind.SEGFAULT, times=2).encode())
    async with stand.client() as client:
        answer = await ask(client, Script(seed=3), 10)

    stand.end()
    assert answer.text == faulty_text(3, 10)
    assert [report["phase"] for report in stand.deaths()] == ["spawning"] * 2


async def test_a_flood_on_stderr_stops_nobody_and_fills_nothing(start: StartStand) -> None:
    stand = start()
    async with stand.client() as client:
        await ask(client, Script(seed=1), 1)
        before = stand.supervisor.memory_info().rss
        flood = Fault(kind=FaultKind.STDERR_FLOOD, number=64 * MIB, at_token=10, name="flood")
        answer = await ask(client, Script(seed=2, fault=flood), 30)
        grown = stand.supervisor.memory_info().rss - before
        abort = Fault(kind=FaultKind.ABORT, words=METAL_WORDS, at_token=10, times=1)
        last = await ask(client, Script(seed=3, fault=abort), 30)
    stand.end()

    (report,) = stand.deaths()
    assert [answer.text, last.text] == [faulty_text(2, 30), faulty_text(3, 30)]
    assert grown < 16 * MIB
    assert len(json.dumps(report["stderr"])) < 1 * MIB
    assert report["death_class"] == "gpu_hang"


async def test_the_memory_of_a_worker_that_is_killed_or_unloaded_is_held_by_nobody(start: StartStand) -> None:
    held = 256 * MIB
    stand = start("--resident-bytes", str(held))
    async with stand.client() as client:
        await client.call("model/load", {"model": ONE})
        before = await entry(client)
        await ask(client, Script(seed=1, fault=Fault(kind=FaultKind.ABORT, times=1)), 1)
        after = await entry(client)
        resident = sum(child.memory_info().rss for child in stand.children())
        await client.call("model/unload", {"model": ONE})
        left = stand.children()
        unloaded = await entry(client)

    for shown in (before, after):
        assert shown.memory_bytes is not None
        assert held < shown.memory_bytes < 2 * held
    assert before.pid != after.pid
    assert held < resident < 2 * held
    assert (left, unloaded.memory_bytes, unloaded.pid, unloaded.state) == ([], None, None, "stopped")
