"""Where the memory meets the system: files that are read ahead, and what a process holds."""

import ctypes
import os
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio
from trio.testing import MockClock

from mlxsup.config.schema import Memory, Model
from mlxsup.supervisor.residency import residency as residency_module
from mlxsup.supervisor.residency.footprint import RusageInfo, held_bytes
from mlxsup.supervisor.residency.read_ahead import read_ahead
from mlxsup.supervisor.residency.residency import Residency, Weights
from mlxsup.supervisor.residency.tenant import Demand
from tests.unit.pool.conftest import until

GB = 10**9


def test_files_are_read_ahead_in_order_up_to_a_bound_and_one_that_is_missing_is_left_out(
    tmp_path: Path,
) -> None:
    for name, size in (("a", 300_000), ("b", 200_000), ("c", 100_000)):
        (tmp_path / name).write_bytes(bytes(size))
    files = [tmp_path / name for name in ("a", "none", "b", "c")]
    assert read_ahead(files, 10**9) == 600_000
    assert read_ahead(files, 350_000) == 350_000
    assert read_ahead(files, 0) == 0


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the advice can be watched on Linux only")
def test_every_byte_is_asked_for_once_and_in_pieces_that_no_device_cuts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, *range_and_advice: asked.append(range_and_advice))
    (tmp_path / "a").write_bytes(bytes(300_001))
    read_ahead([tmp_path / "a"], 10**9)
    assert asked[0] == (0, 131072, os.POSIX_FADV_WILLNEED)
    assert [offset for offset, *_ in asked] == [0, 131072, 262144]
    assert sum(length for _, length, _ in asked) == 300_001


class _Asked:
    def __init__(self, result: int) -> None:
        self.result = result

    def __call__(self, pid: int, flavour: int, info: Any) -> int:
        assert (pid, flavour) == (os.getpid(), 0)
        found = ctypes.cast(info, ctypes.POINTER(RusageInfo)).contents
        found.resident_size, found.phys_footprint, found.wired_size = 33, 49_800, 20
        return self.result


def test_on_a_mac_a_process_holds_its_footprint_and_elsewhere_or_in_doubt_what_is_resident() -> None:
    process = psutil.Process()
    # As <sys/resource.h> has it: sixteen bytes, and ten words of eight.
    assert ctypes.sizeof(RusageInfo) == 96
    assert RusageInfo.phys_footprint.offset == 72
    assert held_bytes(process, _Asked(0)) == 49_800
    assert held_bytes(process, _Asked(-1)) > 1_000_000


class _Occupant:
    def demand(self) -> Demand:
        return Demand(busy=True, urgency=2)

    def make_room(self) -> None:
        """It never does."""


@pytest.mark.parametrize("wanted", [True, False])
async def test_the_weights_of_the_model_that_is_next_are_read_ahead_while_it_waits_unless_that_is_off(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wanted: bool
) -> None:
    asked: list[tuple[tuple[Path, ...], int]] = []

    def note(files: tuple[Path, ...], bytes_max: int) -> int:
        asked.append((files, bytes_max))
        return 0

    monkeypatch.setattr(residency_module, "read_ahead", note)
    residency = Residency(
        Memory(budget_bytes=2 * GB, read_ahead=wanted),
        headroom_bytes=GB,
        blocked_s=10.0,
        spares=0,
        total_bytes=10 * GB,
        available=lambda: 4 * GB,
    )

    async def weigh(name: str) -> Weights:
        await trio.lowlevel.checkpoint()
        return Weights(GB, (tmp_path / name,))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(residency.run)
        first = residency.reserve("a", Model(), lambda: weigh("a"))
        second = residency.reserve("b", Model(), lambda: weigh("b"))
        for reservation in (first, second):
            reservation.occupy(_Occupant())
        assert await first.wait(lambda: True, lambda _: None) is None
        nursery.start_soon(second.wait, lambda: True, lambda _: None)
        await trio.sleep(5)
        if wanted:
            await until(lambda: len(asked) == 2)
        nursery.cancel_scope.cancel()

    expected = [((tmp_path / name,), 3 * GB) for name in "ab"]
    assert asked == (expected if wanted else [])
