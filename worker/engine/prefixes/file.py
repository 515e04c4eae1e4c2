"""The file of one stretch: safetensors, with what it is for and a checksum in its metadata. Pure: bytes in and out.

Other programs can read it as any other file of that format; here nothing of it is believed before the checksum is right.
"""

import json
import math
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any

import msgspec
import numpy as np

from mlxsup.worker.engine.prefixes.stretches import DIGEST_BYTES, Tokens

HEADER_BYTES_MAX = 64 * 1024 * 1024
_FORMAT = "mlxsup prefix 1"
_LENGTH_BYTES = 8
_ALIGN = 8
_CHECKSUM_BYTES = 32
_OF_SIZE = {1: "BOOL U8 I8", 2: "U16 I16 F16 BF16", 4: "U32 I32 F32", 8: "U64 I64 C64"}
_ITEM_BYTES = {name: size for size, names in _OF_SIZE.items() for name in names.split()}


Piece = bytes | memoryview


class Tensor(msgspec.Struct, frozen=True, eq=False):
    """`data` is one run of bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview


class Label(msgspec.Struct, frozen=True, eq=False):
    """What the tensors are: `identity` names the model and the engine that computed them, `state` how they are put together.

    `before`, `start`, `tokens` and `is_whole` are those of the stretch.
    """

    identity: str
    before: bytes
    start: int
    tokens: Tokens
    is_whole: bool
    state: Any


class Header(msgspec.Struct, frozen=True, eq=False):
    """`data_at` is where the tensors begin, `size` how long the whole file has to be."""

    label: Label
    checksum: bytes
    tensors: list[tuple[str, tuple[int, ...], int, int]]
    """Each with its dtype, shape, and where its bytes begin and end in the data."""
    data_at: int
    size: int
    signed: bytes
    """What of the header the checksum is of."""


class BadFileError(ValueError):
    """It is no file of this kind, or not as it was written."""


def encode(label: Label, tensors: Sequence[Tensor]) -> list[Piece]:
    """What is written, one piece behind the other."""
    entries: dict[str, Any] = {}
    end = 0
    for number, tensor in enumerate(tensors):
        begin, end = end, end + _size(tensor.dtype, tensor.shape)
        entries[str(number)] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    metadata = {
        "format": _FORMAT,
        "identity": label.identity,
        "before": label.before.hex(),
        "start": str(label.start),
        "tokens": " ".join(map(str, label.tokens.tolist())),
        "whole": str(int(label.is_whole)),
        "state": json.dumps(label.state),
    }
    data = [tensor.data for tensor in tensors]
    metadata["checksum"] = _checksum(_signed(metadata, entries), data).hex()
    header = json.dumps({"__metadata__": metadata, **entries}).encode()
    header += b" " * (-len(header) % _ALIGN)
    return [len(header).to_bytes(_LENGTH_BYTES, "little"), header, *data]


def header_size(start: bytes) -> int:
    """How many bytes of a file, of which these are the first 8, are its header with these.

    Raises:
        BadFileError: it can't be one.
    """
    length = int.from_bytes(start[:_LENGTH_BYTES], "little")
    if len(start) < _LENGTH_BYTES or not 0 < length <= HEADER_BYTES_MAX:
        raise BadFileError("it has no header")
    return _LENGTH_BYTES + length


def decode_header(content: bytes) -> Header:
    """From the first `header_size` bytes of a file.

    Raises:
        BadFileError: they are no header of a stretch.
    """
    try:
        entries = json.loads(content[_LENGTH_BYTES:])
        metadata = entries.pop("__metadata__")
        if metadata["format"] != _FORMAT:
            raise BadFileError("it is of another format")
        label = Label(
            identity=metadata["identity"],
            before=bytes.fromhex(metadata["before"]),
            start=int(metadata["start"]),
            tokens=np.array(metadata["tokens"].split(), dtype=np.int32),
            is_whole=metadata["whole"] == "1",
            state=json.loads(metadata["state"]),
        )
        checksum = bytes.fromhex(metadata.pop("checksum"))
        tensors = [_entry(entries[str(number)]) for number in range(len(entries))]
    except BadFileError:
        raise
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise BadFileError("its header says nothing of use") from error
    end = 0
    for dtype, shape, begins, ends in tensors:
        if begins != end or ends - begins != _size(dtype, shape):
            raise BadFileError("its tensors have gaps")
        end = ends
    if len(label.before) != DIGEST_BYTES or label.start < 0 or not len(label.tokens):
        raise BadFileError("it is of no stretch")
    return Header(label, checksum, tensors, len(content), len(content) + end, _signed(metadata, entries))


def decode(content: bytes | bytearray) -> tuple[Label, list[Tensor]]:
    """All of a file; the tensors are views of it.

    Raises:
        BadFileError: it is not as it was written.
    """
    header = decode_header(bytes(content[: header_size(bytes(content[:_LENGTH_BYTES]))]))
    if len(content) != header.size:
        raise BadFileError("it is cut off")
    data = memoryview(content)[header.data_at :]
    if _checksum(header.signed, [data]) != header.checksum:
        raise BadFileError("its checksum is wrong")
    return header.label, [
        Tensor(dtype, shape, data[begins:ends]) for dtype, shape, begins, ends in header.tensors
    ]


def _entry(entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    begins, ends = entry["data_offsets"]
    return entry["dtype"], tuple(map(int, entry["shape"])), int(begins), int(ends)


def _size(dtype: str, shape: Iterable[int]) -> int:
    if dtype not in _ITEM_BYTES:
        raise BadFileError("its tensors are of no known type")
    return _ITEM_BYTES[dtype] * math.prod(shape)


def _signed(metadata: dict[str, str], entries: dict[str, Any]) -> bytes:
    return json.dumps([metadata, entries], sort_keys=True).encode()


def _checksum(signed: bytes, data: Iterable[memoryview]) -> bytes:
    found = blake2b(signed, digest_size=_CHECKSUM_BYTES)
    for run in data:
        # It lets go of the interpreter lock meanwhile.
        found.update(run)
    return found.digest()
