"""The default model, pulled once."""

import os
import sys
from pathlib import Path

import pytest
import trio

from mlxsup.config.locations import locate
from mlxsup.config.schema import DEFAULT_MODEL
from mlxsup.supervisor.models.pull import pull


@pytest.fixture(scope="session")
def model_folder() -> Path:
    cache = locate(sys.platform, os.environ, Path.home()).cache

    async def fetch() -> Path:
        return (await pull(DEFAULT_MODEL, store_root=cache, on_progress=lambda _: None)).path

    return trio.run(fetch)
