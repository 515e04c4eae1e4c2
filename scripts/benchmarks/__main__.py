"""`python -P scripts/benchmarks WHAT`, run as a folder."""

import sys
from pathlib import Path

# The folder itself was put there; with the checkout's root, modules have the names that the type checker knows.
sys.path[0] = str(Path(__file__).resolve().parents[2])

from scripts.benchmarks.cli import main  # noqa: E402

main(prog_name="scripts/bench")
