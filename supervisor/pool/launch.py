"""How a worker is started: its command, its environment and its threads. Pure.

The environment is an allow-list: what a worker does not need, tokens above all, it does not get.
"""

import sys
from collections.abc import Mapping

# What Python, MLX, the loader and the user's locale need; and nothing that loads code.
_PASSED = frozenset(
    {
        "HOME",
        "LANG",
        "LC_ALL",
        "LC_CTYPE",
        "LOGNAME",
        "PATH",
        "SHELL",
        "TMPDIR",
        "TZ",
        "USER",
        "XDG_CACHE_HOME",
        "CUDA_VISIBLE_DEVICES",
        "CUDA_HOME",
        "NVIDIA_VISIBLE_DEVICES",
        "MLX_DISABLE_COMPILE",
        "MLX_MAX_OPS_PER_BUFFER",
        "MLX_MAX_MB_PER_BUFFER",
        "MLX_RESIDENCY_SET_MAX_PCT",
    }
)

_FIXED = {
    # A worker has no business on the network: what it loads has been pulled before.
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}


def worker_command(configured: tuple[str, ...]) -> list[str]:
    # -P: the working directory is never a place to import from.
    return list(configured) or [sys.executable, "-P", "-m", "mlxsup.worker"]


def worker_environment(own: Mapping[str, str], preload: Mapping[str, str]) -> dict[str, str]:
    """`own` is the supervisor's environment; `preload` what the CPU backend's BLAS needs."""
    return {name: value for name, value in own.items() if name in _PASSED} | _FIXED | dict(preload)


def share_of_cores(cores: int, models: int) -> int:
    """BLAS threads of each worker: one core is the supervisor's and its clients', the models share the others.

    Threads that outnumber the free cores spin against each other and everything else. Whether the other models are loaded
    does not count: a worker that goes on with another one's request has to add its sums in the same order.
    """
    return max(1, (cores - 1) // models)
