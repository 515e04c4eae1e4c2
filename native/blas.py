"""OpenBLAS for MLX's CPU backend: what a worker's environment has to say for the bridge to carry its products."""

import ctypes
import importlib.util
import os
import sys
from pathlib import Path

from mlxsup.native.shared_objects import shared_object_path


def blas_bridge_path() -> Path | None:
    """The shared object to preload; None where it was not built, as on macOS, where MLX uses Accelerate."""
    return shared_object_path("blas_bridge")


def blas_bridge_active() -> bool:
    """Whether this process multiplies with OpenBLAS, through a bridge that was preloaded into it."""
    try:
        active = ctypes.CDLL(None).mlxsup_blas_bridge_active
    except AttributeError:
        return False
    return bool(active())


def openblas_library_path() -> Path | None:
    """OpenBLAS itself, from the package scipy-openblas32. Looks for the file only, and imports nothing."""
    spec = importlib.util.find_spec("scipy_openblas32")
    if spec is None:
        return None
    candidates = (
        Path(folder, "lib", "libscipy_openblas.so") for folder in spec.submodule_search_locations or ()
    )
    return next((path for path in candidates if path.is_file()), None)


def is_preloadable(path: Path) -> bool:
    """The dynamic linker splits LD_PRELOAD at colons and white space, and has no way to quote them."""
    return not any(character == ":" or character.isspace() for character in str(path))


def preload_environment(threads: int) -> dict[str, str]:
    """The variables to add to the environment of a worker that computes on the CPU.

    `threads` are OpenBLAS's own. Workers that together have more of them than the machine has cores spin against
    each other, and reach less than one worker alone. Empty where there is nothing to preload.
    """
    if threads < 1:
        raise ValueError(f"cannot run OpenBLAS with {threads} threads: it needs at least 1")
    if sys.platform != "linux":
        return {}
    bridge = blas_bridge_path()
    openblas = openblas_library_path()
    if bridge is None or openblas is None or not is_preloadable(bridge):
        return {}
    preloaded = [str(bridge), os.environ.get("LD_PRELOAD", "")]
    return {
        "LD_PRELOAD": ":".join(filter(None, preloaded)),
        "MLXSUP_OPENBLAS": str(openblas),
        "OPENBLAS_NUM_THREADS": str(threads),
    }
