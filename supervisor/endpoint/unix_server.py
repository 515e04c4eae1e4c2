"""The Unix socket: mode 0600 in a 0700 folder, and only for the user who owns it."""

import errno
import fcntl
import logging
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import trio

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.jsonrpc import encode_error
from mlxsup.supervisor.endpoint.connection import Connection
from mlxsup.supervisor.endpoint.peer import peer_uid
from mlxsup.supervisor.endpoint.streams import SocketByteStream
from mlxsup.supervisor.service import Service

_log = logging.getLogger(__name__)

# struct sockaddr_un of the stricter of the two platforms, with its closing zero.
_PATH_BYTES_MAX = 103
FINISH_S = 2.0
# What may be over the next time: too few resources, or a client that left before it was accepted.
_PASSING = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ECONNABORTED, errno.EPROTO, errno.EPERM}
)
_REFUSE_S = 1.0


class SocketUnusableError(Exception):
    """The socket can't be had; the text says why and what to do."""


@contextmanager
def bound_socket(path: Path) -> Iterator[socket.socket]:
    """A listening socket at `path`, for this user only; nobody else's and no running supervisor's is replaced.

    Raises:
        SocketUnusableError: with what to do about it.
    """
    if len(os.fsencode(path)) > _PATH_BYTES_MAX:
        raise SocketUnusableError(
            f"cannot use this socket path: it is longer than {_PATH_BYTES_MAX} bytes; use --socket"
        )
    _check_place(path)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SocketUnusableError(f"cannot use the socket's folder: {error.strerror}; use --socket") from None
    try:
        try:
            # Held as long as we live, so a socket that is there while we hold it was left by a dead supervisor.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SocketUnusableError(
                "a supervisor already runs on this socket: stop it with `mlxsup stop`, or use --socket"
            ) from None
        with suppress(FileNotFoundError):
            path.unlink()
        with _listen(path) as listening:
            try:
                yield listening
            finally:
                with suppress(FileNotFoundError):
                    path.unlink()
    finally:
        os.close(lock)


def _check_place(path: Path) -> None:
    """Raises SocketUnusableError unless there is nothing, or a socket of ours."""
    try:
        status = path.lstat()
    except OSError:
        return
    if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.getuid():
        raise SocketUnusableError("cannot use this socket path: something else is there; use --socket")


def _listen(path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Before bind, so that there is no moment in which another user could connect.
    umask = os.umask(0o177)
    try:
        listening.bind(str(path))
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise SocketUnusableError(f"cannot listen on this socket: {error.strerror}; use --socket") from None
    finally:
        os.umask(umask)
    return listening


class UnixServer:
    """Serves connections until `finish`, which lets each end once it is answered."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._connections: set[Connection] = set()
        self._last_number = 0
        self._accepting = trio.CancelScope()
        self._none_left = trio.Event()

    async def serve(self, listening: socket.socket) -> None:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
        async with trio.open_nursery() as nursery:
            with self._accepting:
                while True:
                    await self._accept(listener, nursery)
            with trio.move_on_after(FINISH_S):
                while self._connections:
                    self._none_left = trio.Event()
                    await self._none_left.wait()
            nursery.cancel_scope.cancel()

    def finish(self) -> None:
        """Accept nobody any more; whoever is connected gets what is left, within a moment."""
        self._accepting.cancel()
        for connection in self._connections:
            connection.shut_down()

    async def _accept(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        try:
            stream = await listener.accept()
        except OSError as error:
            if error.errno not in _PASSING:
                raise
            # It may pass; accepting again at once would only spin.
            _log.error("cannot accept a connection: %s", error.strerror)
            await trio.sleep(0.1)
            return
        nursery.start_soon(self._serve_one, stream)

    async def _serve_one(self, stream: trio.SocketStream) -> None:
        async with stream:
            if not _is_ours(stream):
                return
            limit = self._service.config.server.connections_max
            if len(self._connections) >= limit:
                await _refuse(stream, limit)
                return
            self._last_number += 1
            connection = Connection(
                SocketByteStream(stream), self._service, f"connection {self._last_number}"
            )
            self._connections.add(connection)
            self._service.connections += 1
            try:
                await connection.run()
            finally:
                self._service.connections -= 1
                self._connections.discard(connection)
                if not self._connections:
                    self._none_left.set()


def _is_ours(stream: trio.SocketStream) -> bool:
    try:
        uid = peer_uid(stream.socket)
    except OSError:
        return False
    if uid not in (os.getuid(), 0):
        _log.warning("refused a connection of user %d", uid)
        return False
    return True


async def _refuse(stream: trio.SocketStream, limit: int) -> None:
    error = RpcError(ErrorKind.OVERLOADED, f"{limit} clients are connected already; try again later")
    with trio.move_on_after(_REFUSE_S), suppress(trio.BrokenResourceError):
        await stream.send_all(encode_error(None, error) + b"\n")
