"""How a worker will hold the weights, as far as it can be told before there is one. Edge."""

import functools
import sys
from importlib.metadata import distributions


@functools.cache
def expands_weights() -> bool:
    """Whether workers compute on the CPU, where they expand weights to float32; MLX's other backends are packages."""
    if sys.platform == "darwin":
        return False
    return not any(str(found.metadata["Name"]).lower().startswith("mlx-cuda") for found in distributions())
