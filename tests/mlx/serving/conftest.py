"""One real supervisor with the real default model, for all tests of this folder."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from mlxsup import native
from mlxsup.config.locations import locate
from mlxsup.protocol.client import aio
from mlxsup.protocol.client.sync import Client
from mlxsup.protocol.generation import GenerationResult
from mlxsup.supervisor.models.pull import pull

MODEL = "smollm2-135m"
WAIT_S = 120.0
BLAS_THREADS = 1
PROGRAMS = Path(__file__).with_name("programs")


class Serving(msgspec.Struct, frozen=True):
    """A running supervisor, and the folder of its model."""

    process: subprocess.Popen[bytes]
    socket: Path
    model_folder: Path

    def connect(self) -> Client:
        return Client.connect(self.socket, timeout_s=WAIT_S)

    def ask(self, method: str, **params: Any) -> Any:
        with self.connect() as client:
            return client.call(method, {"model": MODEL, **params})

    def ask_together(self, calls: list[dict[str, Any]]) -> list[GenerationResult]:
        """All at once, on one connection; each call has its `method` and params."""
        results: dict[int, GenerationResult] = {}

        async def run() -> None:
            async with aio.connect(self.socket) as client, trio.open_nursery() as nursery:
                for number, call in enumerate(calls):
                    nursery.start_soon(ask, client, number, call)

        async def ask(client: aio.Client, number: int, call: dict[str, Any]) -> None:
            params = {"model": MODEL, **call}
            with trio.fail_after(WAIT_S):
                results[number] = await client.call(params.pop("method"), params)

        trio.run(run)
        return [results[number] for number in range(len(calls))]

    def reference(self, prompts: list[Any], max_tokens: int, streams: int) -> list[str]:
        """The same greedy texts by mlx-lm alone, with the same BLAS."""
        return self._run("reference.py", {"prompts": prompts, "max_tokens": max_tokens, "streams": streams})

    def noisy_texts(self, calls: list[dict[str, Any]], noise: float) -> list[str]:
        """What `ask_together` would give for chats if each log probability were off by up to `noise`."""
        chats = [{key: value for key, value in call.items() if key != "method"} for call in calls]
        return self._run("noisy.py", {"chats": chats, "noise": noise})

    def _run(self, program: str, order: dict[str, Any]) -> list[str]:
        environment = {**os.environ, **native.preload_environment(BLAS_THREADS)}
        done = subprocess.run(
            [sys.executable, "-P", str(PROGRAMS / program)],
            input=json.dumps({"model": str(self.model_folder), **order}).encode(),
            env=environment,
            stdout=subprocess.PIPE,
            timeout=WAIT_S,
            check=True,
        )
        return list(json.loads(done.stdout))


@pytest.fixture(scope="session")
def model_folder() -> Path:
    """The default model, pulled the way a user pulls it unless it is there already."""
    cache = locate(sys.platform, os.environ, Path.home()).cache

    async def fetch() -> Path:
        return (await pull(MODEL, store_root=cache, on_progress=lambda _: None)).path

    return trio.run(fetch)


@pytest.fixture(scope="session")
def serving(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    # More threads than cores left over would spin against whatever else runs here.
    config = f"[worker]\nblas_threads = {BLAS_THREADS}\n[models.{MODEL}]\n"
    with running(config, tmp_path_factory.mktemp("serving"), model_folder) as serving:
        yield serving


@contextmanager
def running(config_text: str, folder: Path, model_folder: Path) -> Iterator[Serving]:
    """A supervisor with that configuration; `folder` is for its files."""
    config, socket = folder / "config.toml", folder / "s.sock"
    config.write_text(config_text)
    command = [sys.executable, "-P", "-m", "mlxsup.supervisor", "start"]
    with subprocess.Popen(
        [*command, "--config", str(config), "--socket", str(socket)],
        env={**os.environ, "MLXSUP_STATE": str(folder / "state")},
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if b"listening" in line:
                break
        else:
            pytest.fail("the supervisor ended before it listened")
        try:
            yield Serving(process, socket, model_folder)
        finally:
            process.terminate()
            try:
                process.communicate(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
