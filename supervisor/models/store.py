"""The folder that keeps pulled models. Edge.

    ROOT/models/NAME/       a complete model and its manifest, mlxsup.json; put there by one rename
    ROOT/partial/NAME/      what a pull has so far; kept when the pull is interrupted
    ROOT/locks/NAME.lock    held while NAME is pulled

NAME is the model's name in lower case, with `--` for the slash: on a file system that ignores case,
`Owner/Name` and `owner/name` are one folder, and on the hub they are one repository.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.supervisor.models.aliases import CONVERTER_VERSION
from mlxsup.supervisor.models.names import Pullable

MANIFEST = "mlxsup.json"
_MANIFEST_BYTES_MAX = 4 * 1024 * 1024
_FORMAT = 1


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What makes a folder a complete model: it is written last, and names every file with its size.

    `source` and `revision` say where it came from (a hub id and its commit, a package and its version);
    `converter` is the version of the conversion that made it, or None if it is as downloaded; `licence` is
    None if unknown.
    """

    format: int
    name: str
    source: str
    revision: str
    licence: str | None
    converter: int | None
    digest: str
    files: dict[str, int]


class Pulled(msgspec.Struct, frozen=True, kw_only=True):
    """A complete model in the store."""

    name: str
    path: Path
    manifest: Manifest

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @property
    def bytes_on_disk(self) -> int:
        return sum(self.manifest.files.values())


class Store:
    """The layout below one root. Every method may block on the disk."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def prepare(self) -> None:
        """Make the folders, for this user only.

        Raises:
            OSError: the root can't be written.
        """
        for part in ("models", "partial", "locks"):
            (self.root / part).mkdir(mode=0o700, parents=True, exist_ok=True)

    def folder(self, name: Pullable) -> Path:
        return self._inside("models", _slug(name))

    def partial(self, name: Pullable) -> Path:
        return self._inside("partial", _slug(name))

    def lock_file(self, name: Pullable) -> Path:
        return self._inside("locks", f"{_slug(name)}.lock")

    def find(self, name: Pullable) -> Pulled | None:
        """The model, if it is there, complete and of the current converter."""
        return _read(self.folder(name))

    def pulled(self) -> list[Pulled]:
        """All the complete models, by name."""
        return sorted(self._all(), key=lambda model: model.name)

    def publish(self, name: Pullable, prepared: Path, manifest: Manifest) -> Pulled:
        """Put the finished folder `prepared` (below `partial(name)`) into its place, over what was there.

        Everything is on the disk before the rename, so that a loss of power can't leave a half-written model.
        Call it with the model's lock held.
        """
        for file in prepared.iterdir():
            _sync(file)
        (prepared / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
        _sync(prepared / MANIFEST)
        _sync(prepared)
        place = self.folder(name)
        if place.exists():
            replaced = prepared.with_name("replaced")
            shutil.rmtree(replaced, ignore_errors=True)
            place.rename(replaced)
        prepared.rename(place)
        _sync(place.parent)
        return Pulled(name=manifest.name, path=place, manifest=manifest)

    def remove_leftovers(self, name: Pullable) -> None:
        shutil.rmtree(self.partial(name), ignore_errors=True)

    def _all(self) -> Iterator[Pulled]:
        try:
            folders = list((self.root / "models").iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return
        for folder in folders:
            if not folder.is_symlink() and (found := _read(folder)):
                yield found

    def _inside(self, part: str, leaf: str) -> Path:
        place = self.root / part / leaf
        # A link that somebody put here must not lead a pull, or its clean-up, elsewhere.
        if Path(os.path.realpath(place)) != Path(os.path.realpath(self.root)) / part / leaf:
            raise RpcError(
                ErrorKind.MODEL_LOAD_FAILED,
                f"cannot use {part}/{leaf} in the model cache: it is, or is below, a symbolic link; remove "
                "the link",
            )
        return place


def make_manifest(
    folder: Path,
    *,
    name: str,
    source: str,
    revision: str,
    licence: str | None,
    converter: int | None,
    digest: str,
) -> Manifest:
    """The manifest of the finished `folder`, with the sizes of the files that are in it."""
    files = {file.name: file.stat().st_size for file in sorted(folder.iterdir()) if file.is_file()}
    return Manifest(
        format=_FORMAT,
        name=name,
        source=source,
        revision=revision,
        licence=licence,
        converter=converter,
        digest=digest,
        files=files,
    )


def _slug(name: Pullable) -> str:
    return name.name.lower().replace("/", "--")


def _read(folder: Path) -> Pulled | None:
    try:
        with (folder / MANIFEST).open("rb") as file:
            manifest = msgspec.json.decode(file.read(_MANIFEST_BYTES_MAX), type=Manifest)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    current = manifest.format == _FORMAT and manifest.converter in (None, CONVERTER_VERSION)
    if not current or not all(_is_file(folder / file, size) for file, size in manifest.files.items()):
        return None
    return Pulled(name=manifest.name, path=folder, manifest=manifest)


def _is_file(path: Path, size: int) -> bool:
    try:
        return path.is_file() and not path.is_symlink() and path.stat().st_size == size
    except OSError:
        return False


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
