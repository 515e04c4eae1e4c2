"""Checks a model folder before any worker gets to see it, reading headers and small files only. Edge.

What passes can still be a bad model. What doesn't would have run code, read outside of its file in native
code, or failed in a worker minutes later and with a worse message.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.supervisor.models import folder_rules as rules
from mlxsup.supervisor.models.safetensors_header import HEADER_BYTES_MAX, check_header, float32_bytes
from mlxsup.supervisor.models.store import MANIFEST

_SETTINGS_BYTES_MAX = 16 * 1024 * 1024
_DATA_BYTES_MAX = 256 * 1024 * 1024
FILES_MAX = 10_000
_LFS_POINTER = b"version https://git-lfs"
# What a loader reads besides the weights, and what therefore belongs to the model's identity.
_READ_WHOLE = (".json", ".jinja", ".txt", ".model", ".tiktoken")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class FolderFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a folder's headers tell.

    `weights_bytes` is what the weights take on disk, in the files of `weight_files`, and `float32_bytes` what they take
    when each is expanded to a float32; `context_tokens` the longest context that the model was
    made for, None if it doesn't say. `digest` is a SHA-256 (hex) over the names and sizes of all the files
    that a loader reads, the whole of the small ones and the headers of the weights: it costs milliseconds and
    tells two models apart, but two folders that differ in the values of their weights alone have the same.
    """

    model_type: str
    architectures: tuple[str, ...]
    weights_bytes: int
    weight_files: tuple[str, ...]
    float32_bytes: int
    context_tokens: int | None
    quantization: rules.Quantization | None
    digest: str


def check_folder(folder: Path) -> FolderFacts:
    """Check the model in `folder` and return its facts. Blocks on the disk.

    Raises:
        RpcError: MODEL_LOAD_FAILED with what is wrong, in which file, and what to do about it.
    """
    with _told():
        return _check(folder)


def check_settings(folder: Path) -> None:
    """The part of the check that needs no weights: no configuration in `folder` may run the model's own code.

    Raises:
        RpcError: MODEL_LOAD_FAILED, as `check_folder`.
    """
    with _told():
        _read_settings(folder, _files(folder))


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise RpcError(ErrorKind.MODEL_LOAD_FAILED, str(error)) from None
    except OSError as error:
        # The file's name alone: the error's own text has its whole path.
        name = Path(str(error.filename or "a file")).name
        reason = error.strerror or type(error).__name__
        raise RpcError(
            ErrorKind.MODEL_LOAD_FAILED, f"cannot load the model: cannot read {name}: {reason}"
        ) from None


def _check(folder: Path) -> FolderFacts:
    sizes = _files(folder)
    config = rules.as_object("config.json", _read_settings(folder, sizes)["config.json"])
    weights = rules.weight_files(sizes)
    for index in filter(rules.is_index, sizes):
        missing = [shard for shard in rules.shards(index, _settings(folder, index)) if shard not in sizes]
        if missing:
            raise ValueError(
                f"cannot load the model: {len(missing)} of the files that {index} names are missing, the "
                f"first is {missing[0][:100]}; pull or copy the model again"
            )
    rules.check_tokenizer(sizes)
    headers = {name: _header(folder, name, sizes[name]) for name in weights}
    quantization = rules.quantization(config)
    group_size = quantization.group_size if quantization else None
    return FolderFacts(
        model_type=rules.model_type(config),
        architectures=rules.architectures(config),
        weights_bytes=sum(sizes[name] for name in weights),
        weight_files=tuple(weights),
        float32_bytes=sum(float32_bytes(header[8:], group_size) for header in headers.values()),
        context_tokens=rules.context_tokens(config),
        quantization=quantization,
        digest=_digest(folder, sizes, headers),
    )


def _read_settings(folder: Path, sizes: dict[str, int]) -> dict[str, object]:
    if "config.json" not in sizes:
        raise ValueError(
            "cannot load the model: there is no config.json; name the folder that holds the model's files"
        )
    settings = {name: _settings(folder, name) for name in sorted(sizes) if rules.is_settings(name)}
    for name, document in settings.items():
        rules.refuse_code(name, document)
    return settings


def _files(folder: Path) -> dict[str, int]:
    """The sizes of the regular files in `folder`, by name. Links that lead out of the model are refused."""
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            "cannot load the model: its folder isn't there; correct `source`, or pull the model"
        ) from None
    if len(entries) > FILES_MAX:
        raise ValueError(f"cannot load the model: its folder holds more than {FILES_MAX} files")
    allowed = [Path(os.path.realpath(place)) for place in (folder, *_blobs(folder))]
    sizes: dict[str, int] = {}
    for entry in entries:
        if entry.is_symlink():
            target = Path(os.path.realpath(entry.path))
            if not any(target.is_relative_to(place) for place in allowed):
                raise ValueError(
                    f"cannot load the model: {entry.name} is a link to a place outside of the model's "
                    "folder; put the file itself there"
                )
            if not target.exists():
                raise ValueError(
                    f"cannot load the model: {entry.name} is a link to nothing; pull the model again"
                )
        status = entry.stat()
        if stat.S_ISREG(status.st_mode):
            sizes[entry.name] = status.st_size
    return sizes


def _blobs(folder: Path) -> list[Path]:
    # The cache of huggingface_hub: models--OWNER--NAME/snapshots/COMMIT/file is a link into the same model's
    # blobs/.
    repo = folder.parent.parent
    if (
        folder.parent.name == "snapshots"
        and repo.name.startswith("models--")
        and _COMMIT.fullmatch(folder.name)
    ):
        return [repo / "blobs"]
    return []


def _settings(folder: Path, name: str) -> object:
    text = _read(folder, name, _SETTINGS_BYTES_MAX)
    try:
        # The standard parser, as the loaders use it: it takes NaN and Infinity, which some models have.
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(
            f"cannot load the model: {name} is not readable as JSON; pull or copy it again"
        ) from None


def _read(folder: Path, name: str, bytes_max: int) -> bytes:
    with (folder / name).open("rb") as file:
        content = file.read(bytes_max + 1)
    if len(content) > bytes_max:
        raise ValueError(f"cannot load the model: {name} is larger than {bytes_max} bytes")
    return content


def _header(folder: Path, name: str, size: int) -> bytes:
    """The length and the header of the safetensors file, checked against its size."""
    with (folder / name).open("rb") as file:
        start = file.read(len(_LFS_POINTER))
        if start == _LFS_POINTER:
            raise ValueError(
                f"cannot load the model: {name} is a Git LFS pointer; run `git lfs pull` in the folder"
            )
        header_bytes = int.from_bytes(start[:8], "little")
        if size < 8 or header_bytes > size - 8:
            raise ValueError(f"cannot load the model: {name} is truncated; pull or copy it again")
        if header_bytes > HEADER_BYTES_MAX:
            raise ValueError(f"cannot load the model: the header of {name} is over {HEADER_BYTES_MAX} bytes")
        file.seek(8)
        header = file.read(header_bytes)
    try:
        check_header(header, size - 8 - header_bytes)
    except ValueError as error:
        raise ValueError(f"cannot load the model: {name}: {error}; pull or copy it again") from None
    return start[:8] + header


def _digest(folder: Path, sizes: dict[str, int], headers: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name in sorted(sizes):
        if name in headers:
            content = headers[name]
        elif name.endswith(_READ_WHOLE) and name != MANIFEST:
            content = _read(folder, name, _DATA_BYTES_MAX)
        else:
            continue
        # Lengths come first, so that no two lists of files run together into the same bytes.
        for part in (name.encode(), str(sizes[name]).encode(), content):
            digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()
