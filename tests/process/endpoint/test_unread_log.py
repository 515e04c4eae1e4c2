"""Whoever starts a supervisor and never reads its stderr gets one that works and ends all the same."""

import subprocess

import pytest

from mlxsup.protocol.errors import RpcError
from tests.process.endpoint.conftest import LIMIT_S, Supervisor, User

# Twice what a pipe holds.
LOGGED_BYTES = 2 * 64 * 1024
# Each leaves lines in the log that name the model.
LOADS = 600
MODEL = "m" * 90


def start_and_fill_the_log(user: User, flush_s: float) -> subprocess.Popen[bytes]:
    """A supervisor that has logged so much, answers still, and has been told to end."""
    server = f"[server]\nlog_flush_s = {flush_s}"
    user.config.write_text(f"{server}\n[models.{MODEL}]\nsource = './nowhere'\n")
    process = user.spawn("start", stderr=subprocess.PIPE)
    assert process.stderr is not None
    assert any(b"listening" in line for line in process.stderr)
    with Supervisor(process, user.socket).connect() as client:
        for _ in range(LOADS):
            with pytest.raises(RpcError):
                client.call("model/load", {"model": MODEL})
        client.call("server/shutdown")
    return process


def test_a_log_that_nobody_reads_blocks_neither_the_service_nor_its_end(user: User) -> None:
    process = start_and_fill_the_log(user, flush_s=0.1)
    assert process.wait(LIMIT_S) == 0


def test_a_log_that_is_read_late_is_complete(user: User) -> None:
    process = start_and_fill_the_log(user, flush_s=LIMIT_S)
    assert process.stderr is not None
    logged = process.stderr.read()
    assert process.wait(LIMIT_S) == 0
    assert len(logged) > LOGGED_BYTES
    assert logged.count(MODEL.encode()) >= LOADS
    assert b"dropped" not in logged
