"""Pulls a repository of the Hugging Face hub into the store. Edge; only here is huggingface_hub imported."""

import os
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.supervisor.models.fetcher.disk import bytes_below, require_free
from mlxsup.supervisor.models.fetcher.faults import cannot_pull, from_os_error, no_network
from mlxsup.supervisor.models.fetcher.hub_files import choose_files
from mlxsup.supervisor.models.fetcher.messages import Phase
from mlxsup.supervisor.models.fetcher.report import Reporter
from mlxsup.supervisor.models.folder_check import check_folder, check_settings
from mlxsup.supervisor.models.folder_rules import is_settings
from mlxsup.supervisor.models.names import HubId
from mlxsup.supervisor.models.store import Pulled, Store, make_manifest

_COMMIT = re.compile(r"[0-9a-f]{40}")
_WATCH_S = 0.25
_CONNECTIONS = 4
_ANSWER_S_MAX = 30.0


def pull_from_hub(hub_id: HubId, store: Store, reporter: Reporter) -> Pulled:
    """Pull the newest commit of the repository. Call it with the model's lock held.

    Raises:
        RpcError: MODEL_NOT_FOUND if the hub doesn't know it; else with what to do.
        OSError: the store can't be written.
    """
    reporter.progress(Phase.RESOLVE)
    try:
        commit, licence, sizes = _ask(hub_id)
        files = choose_files(sizes)
        # Named by the commit: files of two commits never mix.
        folder = store.partial(hub_id) / commit
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        require_free(folder, sum(files.values()))
        _download(hub_id, commit, folder, {name: size for name, size in files.items() if is_settings(name)})
        # A model that would run its own code is refused before its weights are downloaded.
        check_settings(folder)
        with _watched(folder, sum(files.values()), reporter):
            _download(hub_id, commit, folder, files)
    except (RpcError, BrokenPipeError):
        raise
    except Exception as error:  # noqa: BLE001 - the library raises errors of whatever lies below it
        raise _explain(error, hub_id) from None
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    reporter.progress(Phase.VERIFY)
    try:
        facts = check_folder(folder)
    except RpcError:
        # All of it came, so the next pull would only find the same.
        store.remove_leftovers(hub_id)
        raise
    reporter.progress(Phase.STORE)
    manifest = make_manifest(
        folder,
        name=hub_id.name,
        source=hub_id.name,
        revision=commit,
        licence=licence,
        converter=None,
        digest=facts.digest,
    )
    pulled = store.publish(hub_id, folder, manifest)
    store.remove_leftovers(hub_id)
    return pulled


def _download(hub_id: HubId, commit: str, folder: Path, files: Mapping[str, int]) -> None:
    snapshot_download(
        hub_id.name, revision=commit, allow_patterns=list(files), local_dir=folder, max_workers=_CONNECTIONS
    )
    # The library returns an unfinished folder, with a warning only, when the network fails it halfway.
    if any(
        not (folder / name).is_file() or (folder / name).stat().st_size != size
        for name, size in files.items()
    ):
        raise no_network(f"pulling {hub_id.name}", "not all the files came")


def _ask(hub_id: HubId) -> tuple[str, str | None, dict[str, int]]:
    """The newest commit, the licence that the model's card names, and the sizes of the files."""
    info = HfApi().model_info(hub_id.name, files_metadata=True, timeout=_ANSWER_S_MAX)
    # It becomes a folder's name.
    if info.sha is None or not _COMMIT.fullmatch(info.sha):
        raise cannot_pull(f"the hub names no commit of {hub_id.name}; pull again later")
    licence = info.card_data.get("license") if info.card_data else None
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    return info.sha, licence if isinstance(licence, str) else None, sizes


@contextmanager
def _watched(folder: Path, bytes_total: int, reporter: Reporter) -> Iterator[None]:
    """Report the growth of `folder`: what the library writes, finished or not, lies in and below it."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_WATCH_S):
            try:
                reporter.progress(Phase.DOWNLOAD, min(bytes_below(folder), bytes_total), bytes_total)
            except BrokenPipeError:
                # Nobody is left to pull for; the library's threads would go on for hours.
                os._exit(1)

    reporter.progress(Phase.DOWNLOAD, 0, bytes_total)
    watcher = threading.Thread(target=watch, name="progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
    reporter.progress(Phase.DOWNLOAD, bytes_total, bytes_total)


def _explain(error: Exception, hub_id: HubId) -> RpcError:
    name = hub_id.name
    causes = list(_causes(error))
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes):
        return cannot_pull(
            f"HF_HUB_OFFLINE is set and {name} is not in the model cache; unset it and pull again"
        )
    for cause in causes:
        if isinstance(cause, GatedRepoError):
            return cannot_pull(
                f"the access to {name} is gated; accept its licence on the hub's page of the model, set "
                "HF_TOKEN to your token, and pull again"
            )
        if isinstance(cause, RepositoryNotFoundError):
            return RpcError(
                ErrorKind.MODEL_NOT_FOUND,
                f"cannot pull the model: the hub has no {name} that you may see; check how the name is "
                "written, and if it is private set HF_TOKEN to your token",
            )
        if isinstance(cause, HfHubHTTPError):
            return _from_status(cause.response.status_code, name)
    # The library's own errors are OSErrors, too; one of the file system has a number.
    for cause in causes:
        if (
            isinstance(cause, OSError)
            and cause.errno
            and not isinstance(cause, (ConnectionError, TimeoutError))
        ):
            return from_os_error(cause)
    if any(isinstance(cause, EntryNotFoundError) for cause in causes) or _is_of_the_network(causes):
        return no_network(f"pulling {name}", "the hub can't be reached")
    return cannot_pull(
        f"pulling {name} from the hub failed ({type(error).__name__}); pull again, and see stderr"
    )


def _from_status(status: int, name: str) -> RpcError:
    if status in (401, 403):
        return cannot_pull(
            f"the hub refused {name} with HTTP status {status}; set HF_TOKEN to a valid token of yours"
        )
    if status == 429 or status >= 500:
        return no_network(f"pulling {name}", f"the hub answered with HTTP status {status}")
    return cannot_pull(f"the hub answered for {name} with HTTP status {status}")


def _is_of_the_network(causes: list[BaseException]) -> bool:
    # The HTTP library below huggingface_hub differs between its versions: known by its name only.
    return any(
        isinstance(cause, (ConnectionError, TimeoutError))
        or type(cause).__module__.partition(".")[0].startswith("http")
        for cause in causes
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__
