"""A worker obeys SIGTERM, whatever its libraries make of an exception."""

import signal
import subprocess
import sys
from typing import IO

import msgspec
import pytest

from mlxsup.protocol import worker_link as link
from mlxsup.protocol.exit_codes import ExitCode
from mlxsup.protocol.jsonrpc import encode_request
from tests.process.worker.conftest import PROGRAMS, WAIT_S

pytestmark = pytest.mark.slow

ORDER = link.Load(
    model_path="/nowhere",
    context_tokens_max=None,
    batch_sequences_max=1,
    prefill_chunk_tokens=16,
    float32=None,
    wired_limit_bytes=0,
    cache_limit_bytes=None,
    heartbeat_interval_s=60.0,
)


def methods(stdout: IO[bytes]) -> list[str | None]:
    return [msgspec.json.decode(line).get("method") for line in stdout]


def test_sigterm_during_a_load_ends_the_worker_and_is_no_fault_of_the_model() -> None:
    command = [sys.executable, "-P", str(PROGRAMS / "careless_loader.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write(encode_request(-1, link.LOAD, ORDER) + b"\n")
        worker.stdin.flush()
        for line in worker.stdout:
            if link.PROGRESS.encode() in line:
                break
        worker.send_signal(signal.SIGTERM)

        assert worker.wait(WAIT_S) == ExitCode.TERMINATED
        assert methods(worker.stdout) == []
