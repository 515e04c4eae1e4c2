"""A real supervisor with faulty workers under two models.

What is waited for is an event, a piece of text or the end of a process; `LIMIT_S` only bounds a test that fails.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from mlxsup.protocol.client.aio import Client, connect
from mlxsup.protocol.service import TOPICS
from scripts.faulty_worker.ledger import Ledger, Strike
from tests.process.recovery.asking import Watch
from tests.process.recovery.setting import LIMIT_S, ONE, OTHER

SOCKET = "s.sock"
LEDGER = "ledger"
PROGRAM = Path(__file__).resolve().parents[3] / "scripts" / "faulty_worker"

# Short enough for a test, long enough for a busy machine. Deaths are many, and a worker is healthy at once.
QUICK: dict[str, dict[str, Any]] = {
    "worker": {"heartbeat_interval_s": 0.1, "exit_grace_s": 5.0, "term_grace_s": 0.3, "spares": 0},
    "recovery": {
        "restart_backoff_base_s": 0.01,
        "restart_healthy_s": 0.001,
        "restarts_max": 1000,
        "breaker_deaths": 1000,
        "headroom_bytes": 0,
    },
}

_MLXSUP = (sys.executable, "-P", "-m", "mlxsup.supervisor")
_PROCESS_S = 300
# An alarm survives exec, and the new program has no handler for it.
_LIMITED = "import os, signal, sys; signal.alarm(int(sys.argv[1])); os.execvp(sys.argv[2], sys.argv[2:])"
_CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 8192}


class Stand:
    """`end` it, and look at `deaths` then."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, environment: dict[str, str]) -> None:
        self.process = process
        self.folder = folder
        self.environment = environment
        self._ledger = Ledger(folder / LEDGER)
        self.log: list[tuple[float, str]] = []
        self._logged = threading.Condition()
        self._log_ended = False
        threading.Thread(target=self._read_log, daemon=True).start()

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._logged:
                self.log.append((time.monotonic(), line.decode()))
                self._logged.notify_all()
        with self._logged:
            self._log_ended = True
            self._logged.notify_all()

    def wait_logged(self, pattern: str, *, count: int = 1) -> re.Match[str]:
        """The `count`-th line in which `pattern` is found; waits for it."""

        def find() -> list[re.Match[str]]:
            return [found for _, line in self.log if (found := re.search(pattern, line))]

        with self._logged:
            self._logged.wait_for(lambda: len(find()) >= count or self._log_ended, LIMIT_S)
            assert len(find()) >= count, self.log_text
            return find()[count - 1]

    @property
    def log_text(self) -> str:
        return "".join(line for _, line in self.log)

    @property
    def strikes(self) -> list[Strike]:
        return self._ledger.read()

    @property
    def supervisor(self) -> psutil.Process:
        return psutil.Process(self.process.pid)

    def children(self) -> list[psutil.Process]:
        """All that the supervisor has forked and nobody has waited for."""
        return self.supervisor.children(recursive=True)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        async with connect(self.folder / SOCKET) as client:
            yield client

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[tuple[Client, Watch]]:
        """A client that has subscribed to everything."""
        async with self.client() as client:
            watch = Watch()
            client.listen(watch.take)
            await client.call("server/subscribe", {"topics": list(TOPICS)})
            yield client, watch

    def mlxsup(self, *arguments: str) -> str:
        """What the command prints."""
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*_MLXSUP, *arguments],
            env=self.environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )

    def deaths(self) -> list[dict[str, Any]]:
        """Oldest first, of a supervisor that has ended: it may write them a moment later than it tells of them."""
        assert self.process.returncode is not None
        found: list[dict[str, Any]] = json.loads(self.mlxsup("deaths", "--json", "-n", "1000"))["deaths"]
        return found[::-1]

    def end(self) -> None:
        """As a user does, and everything that it had has ended with it."""
        children = self.children()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(LIMIT_S) == 0, self.log_text
        assert [child for child in children if child.is_running()] == []

    def kill(self) -> None:
        """After a test, whatever came of it."""
        if self.process.poll() is None:
            for child in self.children():
                with suppress(psutil.Error):
                    child.kill()
            self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()


@contextmanager
def start_stand(folder: Path, options: Sequence[str], **sections: Mapping[str, Any]) -> Iterator[Stand]:
    """`mlxsup start` in `folder`, with the faulty worker's `options` and the keys of configuration `sections`."""
    for name in (ONE, OTHER):
        _make_model(folder / name)
    command = [sys.executable, "-P", str(PROGRAM), "--ledger", str(folder / LEDGER), *options]
    tables = {
        "worker": {"command": command, **QUICK["worker"], **sections.get("worker", {})},
        "recovery": {**QUICK["recovery"], **sections.get("recovery", {})},
        "qos": sections.get("qos", {}),
        **{f"models.{name}": {"source": f"./{name}", **sections.get("model", {})} for name in (ONE, OTHER)},
        **{f"models.{ONE}.slo.{tier}": keys for tier, keys in sections.get("slo", {}).items()},
    }
    (folder / "config.toml").write_text("".join(_toml(table, keys) for table, keys in tables.items()))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("MLXSUP_", "XDG_"))},
        "HOME": str(folder),
        "MLXSUP_CONFIG": str(folder / "config.toml"),
        "MLXSUP_SOCKET": str(folder / SOCKET),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", _LIMITED, str(_PROCESS_S), *_MLXSUP, "start"],
        env=environment,
        cwd=folder,
        stderr=subprocess.PIPE,
    )
    stand = Stand(process, folder, environment)
    try:
        stand.wait_logged(" listening on ")
        yield stand
    except BaseException:
        print(stand.log_text)
        raise
    finally:
        stand.kill()


def _toml(table: str, keys: Mapping[str, Any]) -> str:
    lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    return "\n".join([f"[{table}]", *lines, ""])


def _make_model(folder: Path) -> None:
    """What passes for a model before a worker sees it."""
    if folder.exists():
        return
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(_CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    header = json.dumps({"t": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"1234")
