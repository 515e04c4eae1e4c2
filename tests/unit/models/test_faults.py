import errno
import socket
import ssl
import urllib.error
from email.message import Message
from pathlib import Path

import pytest

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.supervisor.models.fetcher import disk
from mlxsup.supervisor.models.fetcher.faults import TransientError, from_os_error, from_url_error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_limit_and_says_what_to_do(number: int) -> None:
    error = from_os_error(OSError(number, "full", "/home/user/cache"))
    assert error.kind is ErrorKind.LIMIT_EXCEEDED
    assert "free some space and pull again" in error.message
    assert "/home" not in error.message


def test_a_cache_that_can_not_be_written_is_told_so() -> None:
    assert "can't be written" in from_os_error(PermissionError(errno.EACCES, "no", "/x")).message
    assert "Input/output" in from_os_error(OSError(errno.EIO, "Input/output error", "/x")).message


def test_a_pull_that_can_not_fit_is_refused_with_both_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "partial").write_bytes(bytes(1024))
    assert disk.bytes_below(tmp_path) == 1024
    disk.require_free(tmp_path, 1024)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 5 << 20}))
    disk.require_free(tmp_path, (5 << 20) + 1024)
    with pytest.raises(
        RpcError, match="needs 6 MiB and the disk of the model cache has 5 MiB free"
    ) as caught:
        disk.require_free(tmp_path, 6 << 20)
    assert caught.value.kind is ErrorKind.LIMIT_EXCEEDED


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        (socket.gaierror(-2, "unknown"), "can't be resolved"),
        (TimeoutError(), "didn't answer in time"),
        (ConnectionRefusedError(), "refused the connection"),
        (ConnectionResetError(), "the connection failed"),
    ],
)
def test_trouble_of_the_network_may_pass(reason: Exception, text: str) -> None:
    for error in (from_url_error(reason), from_url_error(urllib.error.URLError(reason))):
        assert isinstance(error, TransientError)
        assert text in str(error)


def test_an_untrusted_certificate_does_not_pass_by_itself() -> None:
    error = from_url_error(urllib.error.URLError(ssl.SSLCertVerificationError("self-signed")))
    assert isinstance(error, RpcError)
    assert "PIP_CERT" in error.message


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((status, TransientError) for status in (408, 429, 500, 503)),
        *((status, RpcError) for status in (401, 403, 404, 410)),
    ],
)
def test_an_http_status_tells_whether_to_try_again(status: int, kind: type[Exception]) -> None:
    refusal = urllib.error.HTTPError("http://h/secret", status, "no", Message(), None)
    error = from_url_error(refusal)
    refusal.close()
    assert isinstance(error, kind)
    assert f"HTTP status {status}" in str(error)
    assert "secret" not in str(error)
