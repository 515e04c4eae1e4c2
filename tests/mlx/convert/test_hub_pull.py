"""A repository is pulled from a hub on this host, by the real fetcher and the real huggingface_hub."""

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trio

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.supervisor.models.fetcher.messages import Phase, Progress
from mlxsup.supervisor.models.names import HubId
from mlxsup.supervisor.models.pull import pull
from mlxsup.supervisor.models.store import Pulled, Store

pytestmark = pytest.mark.slow

BOUND_S = 120
COMMIT = "0123456789" * 4
_HEADER = json.dumps({"t": {"dtype": "U8", "shape": [300_000], "data_offsets": [0, 300_000]}}).encode()
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model.safetensors": len(_HEADER).to_bytes(8, "little") + _HEADER + bytes(300_000),
    "chat_template.jinja": b"{{ messages }}",
    "modeling_evil.py": b"raise SystemExit",
    "pytorch_model.bin": b"pickle",
    "onnx/model.safetensors": b"another format",
}


class Hub:
    """As much of the hub's HTTP as its library asks for; keeps what was asked, and with which token."""

    def __init__(self) -> None:
        self.files = dict(FILES)
        self.commit = COMMIT
        self.asked: list[str] = []
        self.tokens: set[str | None] = set()
        self.refusal: tuple[int, str] | None = None
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                path = urlsplit(self.path).path
                outer.asked.append(path)
                outer.tokens.add(self.headers.get("Authorization"))
                if outer.refusal:
                    self.answer(b"{}", status=outer.refusal[0], X_Error_Code=outer.refusal[1])
                elif path == "/api/models/Owner/Name":
                    siblings = [{"rfilename": name, "size": len(body)} for name, body in outer.files.items()]
                    card = {"license": "mit"}
                    self.answer_json(
                        {"id": "Owner/Name", "sha": outer.commit, "siblings": siblings, "cardData": card}
                    )
                elif path == f"/api/models/Owner/Name/tree/{COMMIT}":
                    self.answer_json(
                        [
                            {
                                "type": "file",
                                "path": name,
                                "size": len(body),
                                "oid": hashlib.sha1(body).hexdigest(),
                            }
                            for name, body in outer.files.items()
                        ]
                    )
                elif (name := path.removeprefix(f"/Owner/Name/resolve/{COMMIT}/")) in outer.files:
                    body = outer.files[name]
                    self.answer(body, X_Repo_Commit=COMMIT, ETag=f'"{hashlib.sha1(body).hexdigest()}"')
                else:
                    self.answer(b"{}", status=404, X_Error_Code="EntryNotFound")

            def answer_json(self, document: object) -> None:
                self.answer(json.dumps(document).encode(), Content_Type="application/json")

            def answer(self, body: bytes, *, status: int = 200, **headers: str) -> None:
                self.send_response(status)
                for name, value in {**headers, "Content_Length": str(len(body))}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield hub
    hub.http.shutdown()
    hub.http.server_close()
    thread.join(5)


async def fetch(root: Path, seen: list[Progress] | None = None) -> Pulled:
    with trio.fail_after(BOUND_S):
        report = (lambda _: None) if seen is None else seen.append
        return await pull("Owner/Name", store_root=root, on_progress=report)


async def refusal(root: Path) -> RpcError:
    with pytest.raises(RpcError) as caught:
        await fetch(root)
    assert str(root) not in caught.value.message
    assert Store(root).pulled() == []
    return caught.value


async def test_weights_settings_and_tokenizer_come_pinned_to_a_commit_and_neither_code_nor_pickles(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    seen: list[Progress] = []
    pulled = await fetch(tmp_path / "store", seen)
    wanted = {"config.json", "tokenizer.json", "model.safetensors", "chat_template.jinja"}
    assert {file.name for file in pulled.path.iterdir()} == {*wanted, "mlxsup.json"}
    assert all((pulled.path / name).read_bytes() == FILES[name] for name in wanted)
    assert not any(file.is_symlink() for file in pulled.path.iterdir())
    manifest = pulled.manifest
    assert (manifest.name, manifest.revision, manifest.licence) == ("Owner/Name", COMMIT, "mit")
    assert not any("evil" in path or "bin" in path or "onnx" in path for path in hub.asked)
    assert hub.tokens == {"Bearer hf_secret"}
    total = sum(len(FILES[name]) for name in wanted)
    assert Progress(phase=Phase.DOWNLOAD, bytes_done=total, bytes_total=total) in seen
    assert not Store(tmp_path / "store").partial(HubId("Owner/Name")).exists()


async def test_a_model_that_is_there_asks_the_hub_nothing(tmp_path: Path, hub: Hub) -> None:
    pulled = await fetch(tmp_path / "store")
    hub.asked.clear()
    assert await fetch(tmp_path / "store") == pulled
    assert hub.asked == []


@pytest.mark.parametrize(
    ("status", "code", "kind", "reason", "retriable"),
    [
        (404, "RepoNotFound", ErrorKind.MODEL_NOT_FOUND, "the hub has no Owner/Name", False),
        (401, "RepoNotFound", ErrorKind.MODEL_NOT_FOUND, "set HF_TOKEN", False),
        (403, "GatedRepo", ErrorKind.MODEL_LOAD_FAILED, "accept its licence", False),
        (403, "", ErrorKind.MODEL_LOAD_FAILED, "HTTP status 403", False),
        (500, "", ErrorKind.MODEL_LOAD_FAILED, "HTTP status 500", True),
    ],
)
async def test_a_refusal_of_the_hub_says_what_to_do(
    tmp_path: Path, hub: Hub, status: int, code: str, kind: ErrorKind, reason: str, retriable: bool
) -> None:
    hub.refusal = (status, code)
    error = await refusal(tmp_path / "store")
    assert (error.kind, error.data.retriable) == (kind, retriable)
    assert reason in error.message


async def test_a_hub_that_can_not_be_reached_is_a_retriable_error(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    error = await refusal(tmp_path / "store")
    assert error.data.retriable
    assert "the hub can't be reached; check the network" in error.message


async def test_an_offline_environment_is_named_as_the_cause(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set" in (await refusal(tmp_path / "store")).message
    assert hub.asked == []


async def test_a_repository_with_pickles_only_is_refused_before_the_download(
    tmp_path: Path, hub: Hub
) -> None:
    del hub.files["model.safetensors"]
    assert "its weights are pickles" in (await refusal(tmp_path / "store")).message
    assert not any("resolve" in path for path in hub.asked)


async def test_a_repository_with_code_of_its_own_is_refused_before_its_weights_come(
    tmp_path: Path, hub: Hub
) -> None:
    hub.files["config.json"] = b'{"model_type": "llama", "auto_map": {"AutoModel": "modeling_evil.Evil"}}'
    assert "config.json has `auto_map`" in (await refusal(tmp_path / "store")).message
    assert not any("safetensors" in path for path in hub.asked)


async def test_a_repository_whose_weights_are_damaged_is_refused_and_not_kept(
    tmp_path: Path, hub: Hub
) -> None:
    hub.files["model.safetensors"] += b"x"
    assert "model.safetensors: it holds 1 bytes behind" in (await refusal(tmp_path / "store")).message
    assert not Store(tmp_path / "store").partial(HubId("Owner/Name")).exists()


async def test_a_commit_that_is_no_commit_does_not_become_a_path(tmp_path: Path, hub: Hub) -> None:
    hub.commit = "../../escaped"
    assert "names no commit" in (await refusal(tmp_path / "store")).message
    assert not any("escaped" in path for path in hub.asked)
