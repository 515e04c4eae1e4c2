"""A seed says everything: the same one gives the same history, in any process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]
_RUN_S = 60.0


def show(seed: int, hash_seed: str) -> str:
    """What `scripts/simulate --seed` prints, in a process whose sets are ordered in their own way."""
    shown = subprocess.run(
        [sys.executable, "-m", "tests.simulation", "--seed", str(seed)],
        cwd=_ROOT,
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        check=True,
        capture_output=True,
        text=True,
        timeout=_RUN_S,
    )
    return shown.stdout


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3, 8, 173])
def test_a_seed_gives_the_same_history_in_every_process(seed: int) -> None:
    history = show(seed, "1")

    assert len(history.splitlines()) > 50
    assert show(seed, "2") == history
