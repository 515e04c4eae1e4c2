import os
import sys
from pathlib import Path

import pytest
import trio

from mlxsup.config.locations import locate
from mlxsup.supervisor.models.pull import pull


@pytest.fixture(scope="session")
def smollm() -> Path:
    """The default model's folder in the user's cache; pulled the real way if it isn't there."""
    root = locate(sys.platform, os.environ, Path.home()).cache

    async def get() -> Path:
        with trio.fail_after(600):
            return (await pull("smollm2-135m", store_root=root, on_progress=lambda _: None)).path

    return trio.run(get)
