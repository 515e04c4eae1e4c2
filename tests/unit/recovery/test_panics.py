"""Panic reports of macOS, as files."""

import os
from pathlib import Path

import pytest

from mlxsup.supervisor.recovery.panics import gpu_panics

NOW_S = 1_800_000_000.0
# As users reported them.
PANICS = (
    '"completeMemory() prepare count underflow" @IOGPUMemory.cpp:492',
    "IOGPUGroupMemory.cpp:219",
    "IOGPUGroupMemory::remove_memory_object() memory object not found @IOGPUGroupMemory.cpp:323",
    "cpt_mapcnt_inc: refcnt overflow",
    "watchdog timeout: no checkins from watchdogd in 91 seconds",
)


def report(folder: Path, name: str, text: str, age_s: float) -> None:
    path = folder / name
    path.write_text(f'{{"bug_type":"210"}}\n{{"panicString":"panic(cpu 2 caller 0xff): {text}"}}')
    os.utime(path, (NOW_S - age_s, NOW_S - age_s))


@pytest.mark.parametrize("text", PANICS)
def test_a_panic_of_the_gpus_driver_counts(tmp_path: Path, text: str) -> None:
    report(tmp_path, "panic-full-2026-07-07-101010.0002.panic", text, age_s=10)

    assert gpu_panics(NOW_S - 100, tmp_path, "darwin") == 1


def test_old_ones_those_of_others_and_other_reports_do_not_count(tmp_path: Path) -> None:
    report(tmp_path, "old.panic", PANICS[0], age_s=101)
    report(tmp_path, "disk.panic", "nvme: fatal error", age_s=10)
    report(tmp_path, "python.ips", PANICS[0], age_s=10)

    assert gpu_panics(NOW_S - 100, tmp_path, "darwin") == 0


def test_a_report_that_cannot_be_read_hides_no_other(tmp_path: Path) -> None:
    report(tmp_path, "a.panic", PANICS[0], age_s=10)
    (tmp_path / "gone.panic").symlink_to(tmp_path / "nowhere")

    assert gpu_panics(NOW_S - 100, tmp_path, "darwin") == 1


def test_without_the_folder_and_on_other_systems_nothing_is_known(tmp_path: Path) -> None:
    report(tmp_path, "a.panic", PANICS[0], age_s=10)

    assert gpu_panics(NOW_S - 100, tmp_path / "none", "darwin") == 0
    assert gpu_panics(NOW_S - 100, tmp_path, "linux") == 0
