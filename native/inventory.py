"""What there is of the compiled parts on this machine, and what to do about the rest."""

import sys
from dataclasses import dataclass

from mlxsup.native.blas import blas_bridge_path, is_preloadable, openblas_library_path
from mlxsup.native.shared_objects import shared_object_path

# Without --no-cache-dir pip would install the wheel again that it built without a compiler.
_BUILD_REMEDY = (
    "install a C compiler, then run scripts/setup in a checkout, or else "
    "pip install --force-reinstall --no-deps --no-cache-dir --no-binary mlxsup mlxsup"
)


@dataclass(frozen=True, slots=True)
class Part:
    """One optional part of this platform. `reason` and `remedy` are there exactly when the part is not."""

    name: str
    purpose: str
    reason: str | None = None
    remedy: str | None = None

    @property
    def present(self) -> bool:
        return self.reason is None


def parts() -> tuple[Part, ...]:
    """The parts that this platform has a use for."""
    everywhere = (
        _built(
            "orphan_watch", "ends a worker whose supervisor has died, even while native code holds the GIL"
        ),
        _built("signal_origin", "tells a worker's own crash from a signal that somebody sent it"),
    )
    return (*everywhere, _blas_bridge(), _openblas()) if sys.platform == "linux" else everywhere


def _built(name: str, purpose: str) -> Part:
    if shared_object_path(name) is None:
        return Part(name, purpose, "it was not built", _BUILD_REMEDY)
    return Part(name, purpose)


def _blas_bridge() -> Part:
    purpose = "lets MLX's CPU backend use OpenBLAS, ten times and more as fast as the BLAS of its wheel"
    path = blas_bridge_path()
    if path is None:
        return Part("blas_bridge", purpose, "it was not built", _BUILD_REMEDY)
    if not is_preloadable(path):
        reason = "its path has a space or a colon in it, which LD_PRELOAD cannot hold"
        return Part("blas_bridge", purpose, reason, "install mlxsup in a folder without them")
    return Part("blas_bridge", purpose)


def _openblas() -> Part:
    purpose = "the matrix products of MLX's CPU backend, through blas_bridge"
    if openblas_library_path() is None:
        return Part("openblas", purpose, "the package has no library here", "pip install scipy-openblas32")
    return Part("openblas", purpose)
