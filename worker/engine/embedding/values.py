"""Vectors as clients get them."""

import msgspec
import numpy as np
import numpy.typing as npt

# So many bytes a number takes at most as text, with its comma: up to 10^17 without an exponent.
NUMBER_BYTES_MAX = 21


def normalized(vector: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Of length 1; one without a direction stays as it is."""
    length = float(np.linalg.norm(vector.astype(np.float64)))
    return vector if length == 0.0 else (vector / length).astype(np.float32)


def as_json(vector: npt.NDArray[np.float32]) -> bytes:
    """An array of numbers, each with the nine digits that tell all values of 32 bits apart."""
    values = vector.astype(np.float64)
    magnitudes = np.floor(np.log10(np.abs(values), where=values != 0.0, out=np.zeros_like(values)))
    scales = 10.0 ** (8 - magnitudes)
    return msgspec.json.encode((np.round(values * scales) / scales).tolist())
