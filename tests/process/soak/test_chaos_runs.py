"""The whole soak, small: real supervisor, real processes, real deaths."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

_SOAK = Path(__file__).resolve().parents[3] / "scripts" / "soak"
_RUN_S = 300.0

pytestmark = pytest.mark.slow


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-P", str(_SOAK), *arguments]


def run(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        command(*arguments, "--json"), check=False, capture_output=True, text=True, timeout=_RUN_S
    )
    assert done.returncode == 0, done.stderr
    report = msgspec.json.decode(done.stdout, type=dict[str, Any])
    section: dict[str, Any] = report["sections"]["soak"]
    return section


def test_kills_at_every_kind_of_moment_cost_nobody_a_token() -> None:
    section = run("--deaths", "10", "--streams", "4")

    counts = section["figures"]["counts"]
    assert all(goal["met"] for goal in section["goals"])
    assert counts["struck"] >= 10
    assert counts["sent"] == counts["ended"] > counts["resumed"] > 0
    assert counts["sent to the other model"] > 0
    assert section["figures"]["detection"]["kill"]["count"] == counts["told"]


def test_so_do_the_other_ways_to_die() -> None:
    causes = ("abort", "segv", "bus", "term", "exit0", "metal")
    section = run("--deaths", "12", "--streams", "4", *(f"--cause={cause}" for cause in causes))

    assert all(goal["met"] for goal in section["goals"])
    assert len(section["figures"]["detection"]) >= 4


def test_ctrl_c_ends_the_blows_and_the_table_is_printed() -> None:
    with subprocess.Popen(
        command("--deaths", "100000", "--streams", "2", "--no-second-model"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if "of 100000 deaths" in line:
                    break
            process.send_signal(signal.SIGINT)
            table, rest = process.communicate(timeout=_RUN_S)
        finally:
            process.kill()

    assert process.returncode == 130, rest
    assert "interrupted" in table
    assert "met    requests lost, to the model whose workers died: 0" in table
