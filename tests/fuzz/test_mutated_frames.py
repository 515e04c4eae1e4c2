"""A hundred thousand mutated frames against the real connection, in memory: nothing breaks, nobody is misled.

`MLXSUP_FUZZ_FRAMES` and `MLXSUP_FUZZ_SEED` choose another number and other frames. A failure names the connection
that it came from; each connection's frames depend on the seed and on its number alone.
"""

import os
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec
import psutil
import pytest
import trio
from trio.testing import MockClock

from mlxsup.config.schema import Model, Server
from mlxsup.protocol.framing import HEADERS, LINES, Framing
from tests.fakes.memory_worker import Plan
from tests.fuzz.ids_sent import ids_sent
from tests.fuzz.mutations import FrameMaker
from tests.unit.endpoint.in_memory import MemoryClient, MemorySupervisor, memory_supervisor

FRAMES = int(os.environ.get("MLXSUP_FUZZ_FRAMES", "100000"))
SEED = os.environ.get("MLXSUP_FUZZ_SEED", "1")

CONNECTION_FRAMES = 100
SUPERVISOR_CONNECTIONS = 10
MIB = 1024 * 1024
SERVER = Server(frame_bytes_max=64 * 1024, batch_calls_max=20)
MODEL = Model(batch_sequences_max=1024, queue_requests_max=10_000)
PLAN = Plan(hello_s=0.0, load_s=0.0, token_s=1.0)
# Longer than any good request takes; what asked for a million tokens is left then.
PATIENCE_S = 20.0
INTERNAL = -32603


class Sent(msgspec.Struct):
    """What one connection has sent: in chunks, with the ids in it, and those that must be answered exactly once."""

    framing: Framing
    stream: bytearray = msgspec.field(default_factory=bytearray)
    ids: Counter[tuple[type, Any]] = msgspec.field(default_factory=Counter)
    intact: list[str] = msgspec.field(default_factory=list)


def make_connection(number: int) -> Sent:
    rng = random.Random(f"{SEED}/{number}")
    maker = FrameMaker(rng)
    sent = Sent(rng.choice((LINES, LINES, LINES, HEADERS)))
    for _ in range(CONNECTION_FRAMES):
        if rng.random() < 0.2:
            id, frame = maker.intact()
            sent.intact.append(id)
        else:
            frame = maker.mutated()
        add_frame(sent, frame)
    if sent.framing is HEADERS and rng.random() < 0.5:
        # A header that can't be read is the end of a connection, so it comes last.
        sent.stream += maker.mutated() + b"\r\n\r\n"
    return sent


def add_frame(sent: Sent, frame: bytes) -> None:
    if sent.framing is HEADERS:
        sent.stream += HEADERS.encode(frame)
        sent.ids += ids_sent(frame)
        return
    if not sent.stream and frame[:1].lower() == b"c":
        frame = b" " + frame
    sent.stream += frame + b"\n"
    for line in frame.split(b"\n"):
        sent.ids += ids_sent(line)


def chunks(stream: bytes, rng: random.Random) -> Iterator[bytes]:
    start = 0
    while start < len(stream):
        size = rng.choice((1, 100, 10_000, 100_000))
        yield stream[start : start + size]
        start += size


async def converse(client: MemoryClient, sent: Sent, number: int) -> list[Any]:
    received: list[Any] = []

    async def read() -> None:
        with trio.move_on_after(PATIENCE_S):
            received.extend(await client.receive_rest())
        received.extend(client.received())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        for chunk in chunks(bytes(sent.stream), random.Random(number)):
            await client.send_bytes(chunk)
        await client.end_input()
    await client.leave()
    return received


def check(sent: Sent, received: list[Any], where: str) -> None:
    answers: Counter[tuple[type, Any]] = Counter()
    for message in received:
        if isinstance(message, dict) and "method" in message:
            id = message["params"].get("id", message["params"].get("token"))
            assert message["method"] == "event" or (type(id), id) in sent.ids or id is None, (
                f"{where}: {message}"
            )
            continue
        for answer in message if isinstance(message, list) else [message]:
            assert ("result" in answer) != ("error" in answer), f"{where}: {answer}"
            assert answer.get("error", {}).get("code") != INTERNAL, f"{where}: {answer}"
            if answer["id"] is not None:
                answers[type(answer["id"]), answer["id"]] += 1
    wrong = answers - sent.ids
    assert not wrong, f"{where}: answered under ids that were never sent, or too often: {wrong}"
    missed = [id for id in sent.intact if answers[str, id] != 1]
    assert not missed, f"{where}: good requests not answered exactly once: {missed}"


async def do_nothing(_: object, __: object) -> dict[str, Any]:
    await trio.lowlevel.checkpoint()
    return {}


def disarm(supervisor: MemorySupervisor) -> None:
    """What the worker in memory does not know, and what leaves this process or this thread."""
    for method in ("tokenize", "detokenize", "model/list", "model/pull", "server/shutdown"):
        supervisor.service.handlers[method] = do_nothing


async def run_connections(first: int, last: int) -> None:
    async with memory_supervisor(PLAN, server=SERVER, model=MODEL) as supervisor:
        disarm(supervisor)
        for number in range(first, last):
            where = f"MLXSUP_FUZZ_SEED={SEED}, connection {number}"
            sent = make_connection(number)
            client = supervisor.connect(sent.framing)
            try:
                received = await converse(client, sent, number)
            except BaseException as error:
                error.add_note(where)
                raise
            check(sent, received, where)


def resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


@pytest.mark.slow
def test_mutated_frames_break_nothing_mislead_nobody_and_leave_nothing_behind() -> None:
    connections = max(1, FRAMES // CONNECTION_FRAMES)
    warm = max(1, connections // 10)
    resident: list[int] = []
    for first in range(0, connections, SUPERVISOR_CONNECTIONS):
        last = min(first + SUPERVISOR_CONNECTIONS, connections)
        trio.run(run_connections, first, last, clock=MockClock(autojump_threshold=0))
        if last >= warm:
            resident.append(resident_bytes())
    assert max(resident) - resident[0] < 32 * MIB, f"MLXSUP_FUZZ_SEED={SEED}: memory grows"
