"""The outbox against a real pipe: nothing is lost, deltas are merged, and nobody waits for a reader."""

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import msgspec
import pytest

from mlxsup.protocol.jsonrpc import encode_result
from mlxsup.protocol.worker_link import Delta
from mlxsup.worker.outbox import Outbox

WAIT_S = 10.0
# More than any pipe holds.
MANY = 50_000


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for descriptor in (reading, writing):
        with suppress(OSError):
            os.close(descriptor)


def read_frames(reading: int, until: int) -> list[Any]:
    """Frames up to the answer of request `until`."""
    data = b""
    while f'"id":{until},'.encode() not in data or not data.endswith(b"\n"):
        data += os.read(reading, 1 << 16)
    return [msgspec.json.decode(line) for line in data.splitlines()]


def deltas(frames: list[Any], id: int) -> list[Any]:
    return [
        delta
        for frame in frames
        if frame.get("method") == "step"
        for delta in frame["params"]["deltas"]
        if delta[0] == id
    ]


def test_a_step_leaves_at_once_while_the_pipe_has_room(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.set_blocking(reading, False)
    Outbox(writing).send_step([Delta(7, "a", [1])])

    assert b'[7,"a",[1],"",[],[]]' in os.read(reading, 1000)


def test_nothing_is_lost_or_reordered_while_nobody_reads(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    outbox = Outbox(writing)
    for n in range(MANY):
        outbox.send_step([Delta(1, f"{n} ", [n]), Delta(2, "x", [n])])
    outbox.send_step([Delta(1, "end", [MANY])], [encode_result(1, None)])

    frames = read_frames(reading, 1)
    of_1 = deltas(frames, 1)
    assert "".join(delta[1] for delta in of_1) == "".join(f"{n} " for n in range(MANY)) + "end"
    assert [token for delta in of_1 for token in delta[2]] == list(range(MANY + 1))
    assert len(deltas(frames, 2)) < MANY
    assert frames[-1]["id"] == 1
    assert outbox.drain(WAIT_S)


def test_of_heartbeats_that_wait_only_the_newest_is_kept(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    outbox = Outbox(writing)
    outbox.send(encode_result(0, "x" * 1_000_000))
    for n in range(1000):
        outbox.send_heartbeat(b'{"beat":%d}' % n)
    outbox.send(encode_result(1, None))

    beats = [frame["beat"] for frame in read_frames(reading, 1) if "beat" in frame]
    assert beats == [999]


def test_a_supervisor_that_is_gone_stops_nobody(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    outbox = Outbox(writing)
    os.close(reading)
    for _ in range(10):
        outbox.send_step([Delta(1, "x", [1])])

    assert not outbox.drain(WAIT_S)
