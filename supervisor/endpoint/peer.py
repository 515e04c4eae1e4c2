"""Who is at the other end of a Unix socket."""

import socket
import struct
import sys

import trio

# macOS, sys/un.h: the option's level and name, and struct xucred's version and uid.
_SOL_LOCAL = 0
_LOCAL_PEERCRED = 0x001
_XUCRED_BYTES = 76


def peer_uid(connection: trio.socket.SocketType) -> int:
    """The user id of the process that connected. Raises OSError when the kernel does not say."""
    if sys.platform == "darwin":
        credentials = connection.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, _XUCRED_BYTES)
        return int(struct.unpack_from("=II", credentials)[1])
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])
