"""Fixtures that hand out the compiled parts. Where there is a compiler, a part that is missing is a failure."""

import shutil
import sys
from pathlib import Path

import pytest

from mlxsup.native.shared_objects import shared_object_path


def _built(name: str) -> Path:
    path = shared_object_path(name)
    if path is not None:
        return path
    if shutil.which("cc") is None:
        pytest.skip(f"{name} was not built: there is no C compiler on this machine")
    pytest.fail(f"{name} was not built although there is a C compiler: run scripts/setup")


@pytest.fixture(scope="session")
def orphan_watch() -> Path:
    return _built("orphan_watch")


@pytest.fixture(scope="session")
def blas_bridge() -> Path:
    if sys.platform != "linux":
        pytest.skip("the bridge is for Linux: on macOS MLX uses Accelerate")
    return _built("blas_bridge")


@pytest.fixture(scope="session")
def signal_origin() -> Path:
    return _built("signal_origin")
