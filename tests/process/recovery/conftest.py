"""Stands for the tests of recovery."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.process.recovery.stand import Stand, start_stand

StartStand = Callable[..., Stand]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartStand]:
    """Call it with the faulty worker's options, and keys of `worker`, `recovery`, `qos` and `model` (of both of them), and
    tables of objectives of the first, `slo`, by their tier.

    What it had kept is there again when it is called a second time.
    """
    with ExitStack() as stack:

        def start_one(*options: str, **sections: dict[str, Any]) -> Stand:
            stand = stack.enter_context(start_stand(tmp_path, options, **sections))
            # Shown with a test that fails.
            stack.callback(lambda: print(stand.log_text))
            return stand

        yield start_one
