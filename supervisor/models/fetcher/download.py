"""Downloads one file of known length and hash, going on where an earlier attempt stopped. Edge."""

import hashlib
import http.client
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.error import HTTPError

from mlxsup.supervisor.models.fetcher.faults import TransientError, cannot_pull, from_url_error, no_network
from mlxsup.supervisor.models.fetcher.ranges import Answer, judge

_CHUNK_BYTES = 256 * 1024
_SILENCE_S_MAX = 30.0
_DELAYS_S = (0.5, 1.0, 2.0, 4.0, 8.0)
# An attempt that brought this much was no failure of the server's; the next one starts with the shortest
# delay.
_GAIN_BYTES = 1024 * 1024

OnBytes = Callable[[int], None]


def download(
    url: str,
    target: Path,
    *,
    bytes_total: int,
    opener: urllib.request.OpenerDirector,
    on_bytes: OnBytes,
    delays_s: Sequence[float] = _DELAYS_S,
    silence_s_max: float = _SILENCE_S_MAX,
) -> None:
    """Bring `target` to `bytes_total` bytes. What is in it already is taken as the file's beginning.

    Nothing is verified but the length: the caller compares the hash, and removes a file that is wrong.

    Args:
        url: http or https; redirects are followed.
        target: grows as bytes come, and stays when the download fails or the process is killed.
        bytes_total: the file's length, known beforehand. More is never written.
        opener: knows proxies and certificates.
        on_bytes: is told how many bytes are there, now and again.
        delays_s: how long to wait before each further attempt; when they are used up, the download fails.
        silence_s_max: how long the server may send nothing.

    Raises:
        RpcError: retriable if the network is the cause.
        OSError: the file can't be written.
    """
    failures = 0
    while (have := _length(target, bytes_total)) < bytes_total:
        try:
            _attempt(url, target, have, bytes_total, opener, on_bytes, silence_s_max)
        except TransientError as trouble:
            if _length(target, bytes_total) - have >= _GAIN_BYTES:
                failures = 0
            if failures == len(delays_s):
                raise no_network("the download broke off", str(trouble)) from None
            time.sleep(delays_s[failures])
            failures += 1
    on_bytes(bytes_total)


def sha256_of(path: Path, on_bytes: OnBytes) -> str:
    """The SHA-256 (hex) of a file."""
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            on_bytes(done)
    return digest.hexdigest()


def _attempt(
    url: str,
    target: Path,
    have: int,
    total: int,
    opener: urllib.request.OpenerDirector,
    on_bytes: OnBytes,
    silence_s_max: float,
) -> None:
    # A compressed answer could neither be counted nor continued.
    headers = {"Accept-Encoding": "identity"}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - http or https, says the caller
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = opener.open(request, timeout=silence_s_max)
    except HTTPError as error:
        error.close()
        if error.code == 416:
            target.unlink(missing_ok=True)
        raise from_url_error(error) from None
    except (OSError, http.client.HTTPException) as error:
        raise from_url_error(error) from None
    with response:
        answer = judge(
            have=have,
            total=total,
            status=response.status,
            content_range=response.headers.get("Content-Range"),
            content_length=_number(response.headers.get("Content-Length")),
        )
        if answer is Answer.OTHER_FILE:
            raise cannot_pull(
                "the server's file has another length than the one that mlxsup knows; pull again later"
            )
        if answer is Answer.START_OVER:
            target.unlink()
            raise TransientError("the server answered with another part of the file")
        _receive(response, target, have if answer is Answer.APPEND else 0, total, on_bytes)


def _receive(
    response: http.client.HTTPResponse, target: Path, have: int, total: int, on_bytes: OnBytes
) -> None:
    with target.open("ab") as file:
        file.truncate(have)
        while have < total:
            try:
                # read1, not read: what came before the connection broke is kept.
                chunk = response.read1(min(_CHUNK_BYTES, total - have))
            except (OSError, http.client.HTTPException) as error:
                raise from_url_error(error) from None
            if not chunk:
                raise TransientError("the server closed the connection too early")
            file.write(chunk)
            # What is told to have come is there after a kill, too.
            file.flush()
            have += len(chunk)
            on_bytes(have)


def _length(target: Path, total: int) -> int:
    try:
        length = target.stat().st_size
    except FileNotFoundError:
        return 0
    if length > total:
        target.unlink()
        return 0
    return length


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None
