import hashlib
import http.server
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.supervisor.models.fetcher.download import download, sha256_of

CONTENT = bytes(range(256)) * 4096  # 1 MiB
TOTAL = len(CONTENT)

Behaviour = Callable[[http.server.BaseHTTPRequestHandler, int], None]


def answer(handler: http.server.BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content_Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def honest(handler: http.server.BaseHTTPRequestHandler, start: int) -> None:
    if start:
        answer(handler, 206, CONTENT[start:], Content_Range=f"bytes {start}-{TOTAL - 1}/{TOTAL}")
    else:
        answer(handler, 200, CONTENT)


def ignoring_range(handler: http.server.BaseHTTPRequestHandler, _: int) -> None:
    answer(handler, 200, CONTENT)


def breaking_after(count: int) -> Behaviour:
    def behave(handler: http.server.BaseHTTPRequestHandler, start: int) -> None:
        end = f"bytes {start}-{TOTAL - 1}/{TOTAL}"
        answer(
            handler,
            206 if start else 200,
            CONTENT[start : start + count],
            Content_Length=str(TOTAL - start),
            **({"Content_Range": end} if start else {}),
        )

    return behave


def saying(status: int) -> Behaviour:
    return lambda handler, _: answer(handler, status, b"no")


class Server:
    """Answers each request with the next behaviour, the last one ever after; keeps the Ranges asked for."""

    def __init__(self) -> None:
        self.behaviours: list[Behaviour] = [honest]
        self.ranges: list[str | None] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers.get("Range")
                outer.ranges.append(asked)
                behave = outer.behaviours.pop(0) if len(outer.behaviours) > 1 else outer.behaviours[0]
                behave(self, int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0)

            def log_message(self, *_: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/file"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join(5)


def fetch(
    server: Server, target: Path, *, total: int = TOTAL, attempts: int = 3, silence_s: float = 5
) -> list[int]:
    seen: list[int] = []
    download(
        server.url,
        target,
        bytes_total=total,
        opener=urllib.request.build_opener(urllib.request.ProxyHandler({})),
        on_bytes=seen.append,
        delays_s=[0.0] * (attempts - 1),
        silence_s_max=silence_s,
    )
    return seen


def test_a_file_comes_whole_and_its_growth_is_told(server: Server, tmp_path: Path) -> None:
    seen = fetch(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert seen == sorted(seen)
    assert seen[-1] == TOTAL
    assert server.ranges == [None]


def test_a_connection_that_breaks_is_taken_up_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.behaviours = [breaking_after(300_000), breaking_after(200_000), honest]
    fetch(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=300000-", "bytes=500000-"]


def test_a_download_that_was_killed_goes_on_with_what_it_left(server: Server, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(CONTENT[:123_456])
    fetch(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert server.ranges == ["bytes=123456-"]


def test_a_complete_file_asks_the_server_nothing(server: Server, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(CONTENT)
    assert fetch(server, tmp_path / "f") == [TOTAL]
    assert server.ranges == []


def test_a_server_that_ignores_the_range_is_read_from_the_beginning(server: Server, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 1000)
    server.behaviours = [ignoring_range]
    fetch(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_server_that_sends_another_part_is_asked_for_the_whole(server: Server, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(CONTENT[:1000])
    server.behaviours = [
        lambda handler, _: answer(handler, 206, CONTENT[5:], Content_Range=f"bytes 5-{TOTAL - 1}/{TOTAL}"),
        honest,
    ]
    fetch(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert server.ranges == ["bytes=1000-", None]


def test_a_range_that_the_server_does_not_have_starts_over(server: Server, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(CONTENT[:1000])
    server.behaviours = [saying(416), honest]
    fetch(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert server.ranges == ["bytes=1000-", None]


def test_a_file_longer_than_it_may_be_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(CONTENT + b"x")
    fetch(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert server.ranges == [None]


def test_a_server_with_a_longer_file_is_refused_unread(server: Server, tmp_path: Path) -> None:
    with pytest.raises(RpcError, match="another length") as caught:
        fetch(server, tmp_path / "f", total=1000)
    assert not caught.value.data.retriable
    assert not (tmp_path / "f").exists()


def test_a_server_that_tells_no_length_is_read_to_the_known_length_at_most(
    server: Server, tmp_path: Path
) -> None:
    def endless(handler: http.server.BaseHTTPRequestHandler, _: int) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(CONTENT)
        except OSError:
            handler.close_connection = True

    server.behaviours = [endless]
    fetch(server, tmp_path / "f", total=1000)
    assert (tmp_path / "f").stat().st_size == 1000


def test_a_server_that_has_trouble_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.behaviours = [saying(503), saying(429), honest]
    fetch(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_trouble_that_does_not_pass_is_a_retriable_error_and_keeps_what_came(
    server: Server, tmp_path: Path
) -> None:
    server.behaviours = [breaking_after(1000), saying(500)]
    with pytest.raises(RpcError, match="HTTP status 500; check the network") as caught:
        fetch(server, tmp_path / "f", attempts=3)
    assert caught.value.kind is ErrorKind.MODEL_LOAD_FAILED
    assert caught.value.data.retriable
    assert len(server.ranges) == 3
    assert (tmp_path / "f").read_bytes() == CONTENT[:1000]


def test_attempts_are_counted_anew_after_one_that_brought_much(server: Server, tmp_path: Path) -> None:
    total = 4 * TOTAL

    def next_part(handler: http.server.BaseHTTPRequestHandler, start: int) -> None:
        end = {"Content_Range": f"bytes {start}-{total - 1}/{total}"} if start else {}
        answer(handler, 206 if start else 200, CONTENT, Content_Length=str(total - start), **end)

    server.behaviours = [next_part]
    fetch(server, tmp_path / "f", total=total, attempts=2)
    assert (tmp_path / "f").read_bytes() == CONTENT * 4


def test_a_missing_file_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    server.behaviours = [saying(404)]
    with pytest.raises(RpcError, match="HTTP status 404") as caught:
        fetch(server, tmp_path / "f")
    assert len(server.ranges) == 1
    assert not caught.value.data.retriable


def test_a_server_that_falls_silent_is_given_up(server: Server, tmp_path: Path) -> None:
    over = threading.Event()

    def silent(handler: http.server.BaseHTTPRequestHandler, _: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(TOTAL))
        handler.end_headers()
        handler.wfile.write(CONTENT[:1000])
        over.wait(5)

    server.behaviours = [silent]
    with pytest.raises(RpcError, match="didn't answer in time"):
        fetch(server, tmp_path / "f", attempts=1, silence_s=0.05)
    over.set()
    assert (tmp_path / "f").read_bytes() == CONTENT[:1000]


def test_a_server_that_is_not_there_is_a_retriable_error(server: Server, tmp_path: Path) -> None:
    server.url = "http://127.0.0.1:9/file"
    with pytest.raises(RpcError, match="refused the connection") as caught:
        fetch(server, tmp_path / "f")
    assert caught.value.data.retriable


def test_a_target_that_can_not_be_written_is_an_error_of_the_disk(server: Server, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        fetch(server, tmp_path / "nowhere" / "f")


def test_the_hash_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(CONTENT)
    seen: list[int] = []
    assert sha256_of(tmp_path / "f", seen.append) == hashlib.sha256(CONTENT).hexdigest()
    assert seen[-1] == TOTAL
