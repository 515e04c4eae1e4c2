"""The end of a worker is answered, and the next request starts another."""

import os
import signal
from pathlib import Path

import psutil
import pytest

from mlxsup.protocol.client.sync import Client
from mlxsup.protocol.errors import ErrorKind, RpcError
from tests.process.worker.conftest import StartSupervisor

MODEL = "smollm2-135m"


def count(client: Client, tokens: int) -> str:
    result = client.call("generate", {"model": MODEL, "prompt": f"count {tokens}"})
    assert isinstance(result.text, str)
    return result.text


def test_a_worker_killed_in_mid_stream_is_answered_and_the_next_request_works(
    start_supervisor: StartSupervisor,
) -> None:
    supervisor = start_supervisor()
    with supervisor.connect() as client:
        params = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 500, "temperature": 0}
        pieces = iter(client.stream("generate", params))
        first = next(pieces)
        (worker,) = supervisor.workers()
        worker.send_signal(signal.SIGKILL)
        with pytest.raises(RpcError) as raised:
            for _ in pieces:
                pass
        answer = client.call("generate", {**params, "max_tokens": 3})

    death = raised.value.data.death
    assert raised.value.kind is ErrorKind.WORKER_DIED
    assert death is not None
    assert (death.death_class, death.signal, death.phase) == ("killed", "SIGKILL", "ready")
    assert (raised.value.data.tokens_delivered or 0) >= 1
    assert answer.text.startswith(first)
    assert answer.worker.generation == 2


@pytest.mark.parametrize(
    ("script", "death_class"),
    [
        ("die", "killed"),
        ("raise [METAL] Command buffer execution failed: x.", "gpu_error"),
        ("raise oops", "defect"),
    ],
)
def test_each_end_of_a_worker_has_its_class_and_the_next_request_works(
    start_supervisor: StartSupervisor, script: str, death_class: str
) -> None:
    supervisor = start_supervisor("scripted_engine.py")
    with supervisor.connect() as client:
        with pytest.raises(RpcError) as raised:
            client.call("generate", {"model": MODEL, "prompt": script})
        text = count(client, 5)

    assert raised.value.kind is ErrorKind.WORKER_DIED
    assert raised.value.data.death is not None
    assert raised.value.data.death.death_class == death_class
    assert raised.value.data.retriable
    assert text == "xxxxx"


def test_a_shutdown_leaves_no_process_and_status_0(start_supervisor: StartSupervisor) -> None:
    supervisor = start_supervisor("scripted_engine.py")
    with supervisor.connect() as client:
        assert count(client, 2) == "xx"
        (worker,) = supervisor.workers()
        client.call("server/shutdown", {"drain_ms": 0})
        client.wait_closed()

    assert supervisor.process.wait(timeout=10) == 0
    assert not psutil.pid_exists(worker.pid)
    assert not supervisor.socket.exists()


def test_what_runs_is_drained_before_a_shutdown(start_supervisor: StartSupervisor, tmp_path: Path) -> None:
    supervisor = start_supervisor("scripted_engine.py")
    fifo = tmp_path / "go on"
    os.mkfifo(fifo)
    with supervisor.connect() as client, supervisor.connect() as other:
        pieces = iter(client.stream("generate", {"model": MODEL, "prompt": f"wait {fifo}"}))
        assert next(pieces) == "x"
        other.call("server/shutdown")
        with pytest.raises(RpcError) as raised:
            other.call("generate", {"model": MODEL, "prompt": "count 1"})
        fifo.write_bytes(b"!")
        assert list(pieces) == ["x"]

    assert raised.value.kind is ErrorKind.SHUTTING_DOWN
    assert supervisor.process.wait(timeout=10) == 0
