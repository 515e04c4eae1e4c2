"""The one point that decides about MLX's process-wide knobs.

mlx-lm sets the wired limit to the machine's maximum by itself, which has been seen to panic whole machines
(mlx issue 3186); here it is set only where the configuration says so. MLX_METAL_FAST_SYNCH can wedge the GPU
until a reboot (mlx issues 3830, 4005) and is taken out of the environment.
"""

import importlib
import os
from collections.abc import MutableMapping

_HARMFUL = ("MLX_METAL_FAST_SYNCH",)


def scrub_environment(environment: MutableMapping[str, str]) -> None:
    """Call before the first import of MLX, which reads its environment once."""
    for name in _HARMFUL:
        environment.pop(name, None)


scrub_environment(os.environ)

import mlx.core as mx  # noqa: E402


def apply_limits(wired_limit_bytes: int, cache_limit_bytes: int | None) -> None:
    """Set what is configured, and keep mlx-lm from setting anything itself."""
    # Not `import mlx_lm.generate`: the package has a function of that name, which hides the module.
    generate = importlib.import_module("mlx_lm.generate")
    # Both BatchGenerator and stream_generate ask this function; None means that there is nothing to set.
    if not callable(getattr(generate, "maybe_set_recommended_wired_limit", None)):
        raise ImportError(
            "mlx-lm no longer sets the wired limit where it did: this version can't be trusted on a Mac"
        )
    generate.maybe_set_recommended_wired_limit = lambda: None  # type: ignore[attr-defined]
    if wired_limit_bytes:
        mx.set_wired_limit(wired_limit_bytes)
    if cache_limit_bytes is not None:
        mx.set_cache_limit(cache_limit_bytes)
