"""The scripts explain themselves before they do anything."""

import subprocess
from pathlib import Path

import pytest

from tests.process.endpoint.conftest import LIMIT_S

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"


def run(name: str, argument: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPTS / name, argument], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


@pytest.mark.parametrize("name", ["demo", "test"])
@pytest.mark.parametrize("argument", ["-h", "--help"])
def test_help_is_all_that_happens(name: str, argument: str) -> None:
    told = run(name, argument)
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.startswith(f"Usage: scripts/{name}")


def test_the_demonstration_takes_no_argument() -> None:
    refused = run("demo", "--fats")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("Usage: scripts/demo")
