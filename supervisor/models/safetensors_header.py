"""Whether the header of a safetensors file describes that file. Pure.

A loader that trusts a false header reads outside of its data, in native code: so it is checked before any
worker gets to see it.
"""

from math import prod
from typing import Annotated

import msgspec

HEADER_BYTES_MAX = 100_000_000

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
    "F4": 4,
}  # fmt: skip

_Natural = Annotated[int, msgspec.Meta(ge=0)]


class _Tensor(msgspec.Struct, frozen=True):
    dtype: str
    shape: Annotated[list[_Natural], msgspec.Meta(max_length=16)]
    data_offsets: tuple[_Natural, _Natural]


_entries = msgspec.json.Decoder(dict[str, msgspec.Raw])
_tensor = msgspec.json.Decoder(_Tensor)


def check_header(header: bytes, data_bytes: int) -> None:
    """Check that the tensors fill the data exactly, one behind the other.

    Args:
        header: the JSON text between the length and the data.
        data_bytes: how much data the file holds behind the header.

    Raises:
        ValueError: with what is wrong, as the end of a sentence.
    """
    try:
        tensors = _tensors(header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("its header isn't a table of tensors") from None
    end_before = 0
    for name, tensor in sorted(tensors, key=lambda item: item[1].data_offsets):
        begin, end = tensor.data_offsets
        if begin != end_before or end < begin:
            raise ValueError(f"the tensor {name[:100]!r} overlaps another or leaves a gap")
        if end > data_bytes:
            raise ValueError(
                f"it is truncated: it holds {data_bytes} bytes of data, and {name[:100]!r} ends at {end}"
            )
        if (bits := _BITS.get(tensor.dtype)) is None:
            raise ValueError(f"the tensor {name[:100]!r} has the unknown type {tensor.dtype[:20]!r}")
        if prod(tensor.shape) * bits != (end - begin) * 8:
            raise ValueError(f"the tensor {name[:100]!r} has another size than its shape and type say")
        end_before = end
    if not tensors:
        raise ValueError("it holds no tensors")
    if end_before != data_bytes:
        raise ValueError(f"it holds {data_bytes - end_before} bytes behind its last tensor")


def float32_bytes(header: bytes, group_size: int | None) -> int:
    """What the tensors take with each value as a float32; `header` has passed the check.

    `group_size` values share each scale of a tensor that is quantized; None if it isn't told, then 64.
    """
    tensors = dict(_tensors(header))
    values = 0
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        quantized = f"{stem}.scales" in tensors
        if not quantized or kind not in ("weight", "scales", "biases"):
            values += prod(tensor.shape)
        elif kind == "scales":
            values += prod(tensor.shape) * (group_size or 64)
    return 4 * values


def _tensors(header: bytes) -> list[tuple[str, _Tensor]]:
    entries = _entries.decode(header).items()
    return [(name, _tensor.decode(entry)) for name, entry in entries if name != "__metadata__"]
