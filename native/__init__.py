"""Compiled code that a worker does better with, each part optional.

`blas_bridge` (Linux): OpenBLAS under MLX's CPU backend, preloaded into the worker. `scripts/bench native` on two cores
of an Intel Xeon, 2026-11-22, SmolLM2-135M in float32: prefill 179 tokens/s instead of 11, decoding 16 streams 92 instead
of 8.

`orphan_watch`: ends a worker whose supervisor is gone. It does so while native code holds the GIL, when neither
a thread of Python nor a signal handler would ever run; PR_SET_PDEATHSIG would kill workers of a healthy Trio
supervisor.

`signal_origin`: says on stderr whether a worker raised the signal that ends it, or who sent it. Only a handler within the
process is told, and one of Python would wait for the GIL.

Plain C, loaded with LD_PRELOAD and ctypes. Where a part was not built, its function returns None or nothing to
set, the worker runs without it, and `parts` has the reason for `mlxsup doctor`.
"""

from mlxsup.native.blas import (
    blas_bridge_active,
    blas_bridge_path,
    openblas_library_path,
    preload_environment,
)
from mlxsup.native.inventory import Part, parts
from mlxsup.native.orphan import OrphanWatch, watch_orphan
from mlxsup.native.signal_origin import report_signal_origin

__all__ = [
    "OrphanWatch",
    "Part",
    "blas_bridge_active",
    "blas_bridge_path",
    "openblas_library_path",
    "parts",
    "preload_environment",
    "report_signal_origin",
    "watch_orphan",
]
