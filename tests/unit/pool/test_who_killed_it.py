"""What a supervisor learns of a signal that ended a worker, from the worker's stderr and from the kernel's count."""

import os

import msgspec
import psutil
import pytest
import trio
from trio.testing import MockClock

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.supervisor.recovery.aftermath import Aftermath
from tests.fakes import memory_worker
from tests.fakes.collecting_sink import CollectingSink
from tests.fakes.memory_worker import HELLO, full_text
from tests.fakes.requests import make_request
from tests.unit.pool.conftest import OpenStage, Stage, until

KEY = "0123456789abcdef"
OTHER_KEY = "fedcba9876543210"
TOKENS = 100
PIPE = b"x" * 100 + b"\n"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_worker, "HELLO", msgspec.structs.replace(HELLO, signal_key=KEY))


def line(pid: int, key: str = KEY) -> bytes:
    return f"\nmlxsup: signal 11 sent by process {pid} ({key})\n".encode()


def submit(stage: Stage) -> CollectingSink:
    sink = CollectingSink()
    stage.runner.submit(make_request(sink, prompt="p", tokens=TOKENS))
    return sink


async def die(stage: Stage, returncode: int, *said: bytes) -> Aftermath:
    """In the middle of a text, and wait until it is known."""
    deaths, worker = len(stage.notes.deaths), stage.worker
    for piece in said:
        await worker.complaints.send_all(piece)
    worker.die(returncode)
    await until(lambda: len(stage.notes.deaths) > deaths)
    return stage.notes.deaths[-1][2]


async def test_a_signal_that_a_living_process_sent_is_told_with_its_name_and_blames_nobody(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage() as stage:
        await stage.runner.ensure_ready()
        sink = submit(stage)
        for _ in range(3):
            await trio.sleep(2)
            aftermath = await die(stage, -11, line(os.getpid()))
            await stage.wait_state("ready")
        await trio.sleep(60)

    assert stage.classes == ["signalled"] * 3
    assert f"sent by process {os.getpid()} ({psutil.Process().name()})" in aftermath.reason
    assert sink.text == full_text("p", TOKENS)
    assert stage.notes.quarantined == []


async def test_of_a_process_that_has_ended_only_the_number_is_told(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage() as stage:
        await stage.runner.ensure_ready()
        aftermath = await die(stage, -11, line(2**31 - 1))

    assert stage.classes == ["signalled"]
    assert f"sent by process {2**31 - 1} (which has ended)" in aftermath.reason


async def test_the_line_counts_also_when_a_long_dump_of_stacks_comes_after_it(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage() as stage:
        await stage.runner.ensure_ready()
        await die(stage, -11, line(0), PIPE * 2000)
        (_, evidence, _) = stage.notes.deaths[0]

    assert stage.classes == ["signalled"]
    assert not any("sent by" in kept for kept in evidence.stderr)


async def test_what_a_prompt_makes_a_library_print_is_not_the_line(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage() as stage:
        await stage.runner.ensure_ready()
        own = f"\nmlxsup: signal 11 raised here ({KEY})\n".encode()
        await die(stage, -11, own, line(1, OTHER_KEY))
        await stage.wait_state("ready")
        await die(stage, -11, line(1, OTHER_KEY))

    assert stage.classes == ["segmentation_fault"] * 2


async def test_before_hello_nobodys_text_has_come_and_the_line_is_believed(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage() as stage:
        submit(stage)
        await stage.wait_entered("spawning")
        await die(stage, -11, line(1, OTHER_KEY))

    assert stage.classes == ["signalled"]


async def test_a_kill_that_the_kernel_has_counted_lets_a_request_go_on_once(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage() as stage:
        await stage.runner.ensure_ready()
        sink = submit(stage)
        for _ in range(2):
            await trio.sleep(3)
            stage.worker.oom_killed += 1
            await die(stage, -9)
            if len(stage.notes.deaths) == 1:
                await stage.wait_state("ready")
        (outcome,) = sink.outcomes

    assert stage.classes == ["killed_out_of_memory"] * 2
    assert isinstance(outcome, RpcError)
    assert outcome.kind is ErrorKind.WORKER_DIED
    assert len(stage.notes.deaths[0][2].resumed) == 1


async def test_a_kill_long_after_the_kernel_took_another_process_is_somebodys(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage() as stage:
        await stage.runner.ensure_ready()
        stage.worker.oom_killed += 1
        await trio.sleep(5)
        aftermath = await die(stage, -9)

    assert stage.classes == ["killed"]
    assert "somebody sent it SIGKILL" in aftermath.reason
