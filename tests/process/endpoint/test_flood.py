"""Two hundred megabytes in one frame cost the supervisor no more memory than the frames that it takes."""

import socket

import msgspec
import pytest

from mlxsup.protocol.framing import HEADERS, LINES, Frame, Framing
from tests.process.endpoint.conftest import LIMIT_S, Supervisor, User, request

MIB = 1024 * 1024
FLOOD_BYTES = 200 * MIB
FRAME_BYTES_MAX = 8 * MIB
# A frame is held while it grows and copied once when it is whole; the rest is what an allocator keeps.
GROWTH_BYTES_MAX = FRAME_BYTES_MAX + 8 * MIB


def flood(client: socket.socket, supervisor: Supervisor) -> int:
    """The most that the supervisor held meanwhile."""
    chunk = b"x" * MIB
    most = 0
    for _ in range(FLOOD_BYTES // MIB):
        client.sendall(chunk)
        most = max(most, supervisor.resident_bytes)
    return most


@pytest.mark.slow
@pytest.mark.parametrize(
    ("framing", "start", "end"),
    [(LINES, b"", b"\n"), (HEADERS, b"Content-Length: %d\r\n\r\n" % FLOOD_BYTES, b"")],
    ids=["a line", "a body"],
)
def test_a_flood_is_refused_thrown_away_and_survived(
    user: User, framing: Framing, start: bytes, end: bytes
) -> None:
    supervisor = user.start()
    with supervisor.connect() as before:
        before.call("server/info")
    base = supervisor.resident_bytes
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(LIMIT_S)
        client.connect(str(supervisor.socket))
        client.sendall(start)
        most = flood(client, supervisor)
        client.sendall(end + framing.encode(request(1, "server/info").strip()))
        client.shutdown(socket.SHUT_WR)
        answered = b"".join(iter(lambda: client.recv(65536), b""))
    assert most - base < GROWTH_BYTES_MAX
    assert supervisor.resident_bytes - base < GROWTH_BYTES_MAX
    frames = [event for event in framing.make_decoder(MIB).feed(answered) if isinstance(event, Frame)]
    refusal, answer = (msgspec.json.decode(frame.data) for frame in frames)
    assert (refusal["id"], refusal["error"]["data"]["kind"]) == (None, "limit_exceeded")
    assert "result" in answer
