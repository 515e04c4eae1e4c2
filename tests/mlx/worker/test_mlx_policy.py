"""The wired limit is never touched unless the configuration says so; seen in a process with the real mlx-lm."""

import subprocess
import sys

PROGRAM = """
import mlx.core as mx
calls = []
real_info = mx.device_info
mx.device_info = lambda *a: {**real_info(*a), "max_recommended_working_set_size": 1 << 30}
mx.set_wired_limit = lambda n: calls.append(n) or 0

from mlxsup.worker.mlx_policy import apply_limits
import mlx.nn as nn
from mlx_lm.generate import BatchGenerator

apply_limits(%d, None)
BatchGenerator(nn.Linear(1, 1)).close()
print(calls)
"""


def calls_with(wired_limit_bytes: int) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM % wired_limit_bytes],
        stdout=subprocess.PIPE,
        timeout=60,
        check=True,
    )
    return done.stdout.decode().strip()


def test_mlx_lm_does_not_set_the_wired_limit_by_itself() -> None:
    assert calls_with(0) == "[]"


def test_a_configured_wired_limit_is_set_once_and_as_configured() -> None:
    assert calls_with(12345) == "[12345]"
