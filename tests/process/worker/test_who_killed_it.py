"""A crash of a worker's own and a signal that somebody sent are two different deaths, and a kill by the kernel a third.

All the ends come one after the other in one supervisor: each test looks at some of them.
"""

import os
import re
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import trio

from mlxsup.protocol.client.aio import Client
from mlxsup.protocol.errors import RpcError
from mlxsup.supervisor.pool.oom_counter import find_oom_counter
from scripts.faulty_worker.answers import faulty_text
from scripts.faulty_worker.script import Fault, FaultKind, Script
from tests.process.recovery.asking import Watch, ask, death, entry
from tests.process.recovery.setting import LIMIT_S, ONE
from tests.process.recovery.stand import Stand, start_stand
from tests.process.worker.conftest import WAIT_S, StartSupervisor

MODEL = "smollm2-135m"
SEED = 3
TOKENS = 60
# Of a text that only a cancel ends.
_ENDLESS_TOKENS = 1_000_000

_TOLD = [signal.SIGABRT, signal.SIGTRAP]
_FAULTS = [signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE]
# The kernel of macOS says of those that look like faults nothing at all.
CRASHES_SENT = _TOLD + _FAULTS if sys.platform == "linux" else _TOLD
SENT = [*CRASHES_SENT, signal.SIGTERM, signal.SIGKILL]


class Own(msgspec.Struct, frozen=True, kw_only=True):
    """An end that a worker brings about itself."""

    kind: FaultKind
    death_class: str
    signal: str
    number: int = 0
    words: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.signal}"


LIE = f"mlxsup: signal {int(signal.SIGSEGV)} sent by process 1 (0123456789abcdef)"
OWN = [
    Own(kind=FaultKind.ABORT, death_class="aborted", signal="SIGABRT"),
    Own(kind=FaultKind.SEGFAULT, death_class="segmentation_fault", signal="SIGSEGV"),
    Own(kind=FaultKind.BUS_ERROR, death_class="bus_error", signal="SIGBUS"),
    Own(kind=FaultKind.SIGNAL, number=signal.SIGTRAP, death_class="trapped", signal="SIGTRAP"),
]
LYING = Own(kind=FaultKind.SEGFAULT, words=LIE, death_class="segmentation_fault", signal="SIGSEGV")


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """`reports` in the order of `SENT`, `OWN` and at last `LYING`; `text` is of the request that all of `SENT` struck."""

    reports: list[dict[str, Any]]
    text: str
    resumed: int


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    with start_stand(tmp_path_factory.mktemp("stand"), []) as stand:
        yield trio.run(_end_all, stand)


async def _end_all(stand: Stand) -> Seen:
    async with stand.watched() as (client, watch):
        text, resumed = await _send_all(client, watch)
        for number, own in enumerate((*OWN, LYING)):
            fault = Fault(
                kind=own.kind, at_token=5, times=1, name=str(number), number=own.number, words=own.words
            )
            await ask(client, Script(seed=SEED, fault=fault), TOKENS)
            await watch.until(death(), count=len(SENT) + number + 1)
    stand.end()
    return Seen(reports=stand.deaths(), text=text, resumed=resumed)


async def _send_all(client: Client, watch: Watch) -> tuple[str, int]:
    """One text, and every signal to the worker that it comes from."""
    script = Script(seed=SEED, token_ms=2)
    params = {"model": ONE, "prompt": script.prompt(), "max_tokens": _ENDLESS_TOKENS}
    pieces: list[str] = []
    with trio.fail_after(LIMIT_S * 2):
        async with client.stream("generate", params) as stream:
            for count, number in enumerate(SENT, 1):
                # More than can still be on its way from the worker before: this one has it now.
                pieces += [await anext(stream) for _ in range(10)]
                pid = (await entry(client)).pid
                assert pid is not None
                os.kill(pid, number)
                await watch.until(death(), count=count)
            pieces += [await anext(stream) for _ in range(10)]
            stream.cancel()
            pieces += [piece async for piece in stream]
    assert stream.result is not None
    assert stream.result.worker is not None
    assert stream.result.usage.completion_tokens > 0
    return "".join(pieces), stream.result.worker.resumed


def report_of_sent(seen: Seen, number: signal.Signals) -> dict[str, Any]:
    return seen.reports[SENT.index(number)]


@pytest.mark.parametrize("number", CRASHES_SENT, ids=lambda number: number.name)
def test_a_crash_signal_from_outside_names_its_sender(seen: Seen, number: signal.Signals) -> None:
    report = report_of_sent(seen, number)
    sender = {"number": int(number), "sender_pid": os.getpid(), "sender_name": psutil.Process().name()}

    assert (report["death_class"], report["signal"]) == ("signalled", number.name)
    assert report["origin"] == sender
    assert f"sent by process {os.getpid()} ({sender['sender_name']})" in report["reason"]
    assert any(f"signal {int(number)} sent by process {os.getpid()}" in line for line in report["stderr"])


def test_who_asked_a_worker_to_end_is_named(seen: Seen) -> None:
    report = report_of_sent(seen, signal.SIGTERM)

    assert (report["death_class"], report["exit_status"]) == ("terminated", 71)
    assert report["origin"]["sender_pid"] == os.getpid()


def test_a_kill_is_nobodys_that_could_be_named_and_not_the_kernels(seen: Seen) -> None:
    report = report_of_sent(seen, signal.SIGKILL)

    assert (report["death_class"], report["signal"], report["origin"]) == ("killed", "SIGKILL", None)
    if sys.platform == "linux":
        assert "somebody sent it SIGKILL" in report["reason"]


def test_a_request_that_all_of_them_struck_went_on_and_is_blamed_for_none(seen: Seen) -> None:
    struck = [report["in_flight"] for report in seen.reports[: len(SENT)]]

    assert {len(shapes) for shapes in struck} == {1}
    assert len({shapes[0]["digest"] for shapes in struck}) == 1
    assert seen.resumed == len(SENT)
    assert faulty_text(SEED, len(seen.text)).startswith(seen.text)


@pytest.mark.parametrize("own", OWN, ids=str)
def test_a_crash_of_its_own_is_called_so(seen: Seen, own: Own) -> None:
    report = seen.reports[len(SENT) + OWN.index(own)]
    known = sys.platform == "linux" or signal.Signals[own.signal] in _TOLD
    origin = {"number": int(signal.Signals[own.signal]), "sender_pid": None, "sender_name": None}

    assert (report["death_class"], report["signal"]) == (own.death_class, own.signal)
    assert report["origin"] == (origin if known else None)


def test_a_text_on_stderr_does_not_pass_for_a_sender(seen: Seen) -> None:
    report = seen.reports[-1]

    assert len(seen.reports) == len(SENT) + len(OWN) + 1
    assert report["death_class"] == LYING.death_class
    assert (report["origin"] or {}).get("sender_pid") is None


@pytest.mark.skipif(sys.platform != "linux", reason="this kernel does not say who sent a fault")
@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT], ids=lambda number: number.name)
def test_a_worker_whose_interpreter_lock_native_code_holds_still_says_who_sent_it(
    start_supervisor: StartSupervisor, tmp_path: Path, number: signal.Signals
) -> None:
    supervisor = start_supervisor("scripted_engine.py")
    fifo = tmp_path / "held"
    os.mkfifo(fifo)
    with fifo.open("r+b", buffering=0) as held, supervisor.connect() as client:
        stream = client.stream("generate", {"model": MODEL, "prompt": f"hold {fifo}", "resume": False})
        readable, _, _ = select.select([held], [], [], WAIT_S)
        assert readable
        supervisor.serving().send_signal(number)
        with pytest.raises(RpcError) as raised:
            list(stream)

    assert raised.value.data.death is not None
    assert (raised.value.data.death.death_class, raised.value.data.death.signal) == ("signalled", number.name)
    assert f"sent by process {os.getpid()} " in raised.value.message


GROUP_BYTES = 800_000_000


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A memory cgroup of our own with a bound, empty; where one may be made."""
    counter = find_oom_counter(os.getpid())
    if counter is None or counter.name == "vmstat":
        pytest.skip("no memory cgroup counts for this process")
    bound = {"memory.events": "memory.max", "memory.oom_control": "memory.limit_in_bytes"}[counter.name]
    group = counter.parent / f"mlxsup-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"a cgroup cannot be made here: {error.strerror}")
    try:
        try:
            (group / bound).write_text(str(GROUP_BYTES))
        except OSError as error:
            pytest.skip(f"a cgroup has no bound here: {error.strerror}")
        with suppress(OSError):
            # Where there is swap, the bound would only make everything slow.
            (group / "memory.swap.max").write_text("0")
        yield group
    finally:
        group.rmdir()


@pytest.mark.skipif(sys.platform != "linux", reason="has no cgroups")
def test_a_worker_that_the_kernel_ends_for_want_of_memory_is_told_from_one_that_somebody_kills(
    memory_group: Path, tmp_path: Path
) -> None:
    with start_stand(tmp_path, []) as stand:
        (memory_group / "cgroup.procs").write_text(str(stand.process.pid))
        trio.run(_exhaust, stand)
        stand.end()
        killed, exhausted = stand.deaths()

    assert (killed["death_class"], killed["signal"]) == ("killed", "SIGKILL")
    assert (exhausted["death_class"], exhausted["signal"]) == ("killed_out_of_memory", "SIGKILL")
    assert re.search("the kernel ended it for want of memory", exhausted["reason"])
    assert "1 resumed" in exhausted["action"]


async def _exhaust(stand: Stand) -> None:
    leak = Fault(kind=FaultKind.LEAK, at_token=5, times=1, number=50_000_000)
    async with stand.watched() as (client, watch):
        for count, script in enumerate((Script(seed=SEED, token_ms=2), Script(seed=SEED, fault=leak)), 1):
            params = {"model": ONE, "prompt": script.prompt(), "max_tokens": TOKENS}
            with trio.fail_after(LIMIT_S):
                async with client.stream("generate", params) as stream:
                    pieces = [await anext(stream)]
                    if script.fault is None:
                        os.kill((await entry(client)).pid or 0, signal.SIGKILL)
                    await watch.until(death(), count=count)
                    pieces += [piece async for piece in stream]
            assert "".join(pieces) == faulty_text(SEED, TOKENS)
