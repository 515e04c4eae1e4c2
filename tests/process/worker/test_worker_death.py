"""What a client sees of the end of its worker: a pause, or, where it wants no more, the error that says why."""

import os
import signal
from pathlib import Path

import psutil
import pytest

from mlxsup.protocol.client.sync import Client
from mlxsup.protocol.errors import ErrorKind, RpcError
from tests.process.worker.conftest import StartSupervisor, read_pids

MODEL = "smollm2-135m"
STORY = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 150, "temperature": 0}


def count(client: Client, tokens: int) -> str:
    result = client.call("generate", {"model": MODEL, "prompt": f"count {tokens}"})
    assert isinstance(result.text, str)
    return result.text


def test_a_stream_goes_on_when_its_worker_is_killed_and_its_text_is_the_undisturbed_one(
    start_supervisor: StartSupervisor,
) -> None:
    supervisor = start_supervisor()
    with supervisor.connect() as client:
        undisturbed = client.call("generate", STORY)
        stream = client.stream("generate", STORY)
        text = next(stream)
        supervisor.serving().send_signal(signal.SIGKILL)
        text += "".join(stream)

    assert stream.result is not None
    assert stream.result.worker is not None
    assert (stream.result.worker.resumed, stream.result.worker.generation) == (1, 2)
    assert text == stream.result.text == undisturbed.text
    assert stream.result.usage == undisturbed.usage


def test_without_resume_the_death_is_the_answer_and_the_next_request_works(
    start_supervisor: StartSupervisor,
) -> None:
    supervisor = start_supervisor()
    with supervisor.connect() as client:
        stream = client.stream("generate", {**STORY, "resume": False})
        first = next(stream)
        supervisor.serving().send_signal(signal.SIGKILL)
        with pytest.raises(RpcError) as raised:
            for _ in stream:
                pass
        answer = client.call("generate", {**STORY, "max_tokens": 3})

    death = raised.value.data.death
    assert raised.value.kind is ErrorKind.WORKER_DIED
    assert death is not None
    assert (death.death_class, death.signal, death.phase) == ("killed", "SIGKILL", "ready")
    assert (raised.value.data.tokens_delivered or 0) >= 1
    assert answer.text.startswith(first)
    assert (answer.worker.generation, answer.worker.resumed) == (2, 0)


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
            client.call("generate", {"model": MODEL, "prompt": script, "resume": False})
        text = count(client, 5)

    assert raised.value.kind is ErrorKind.WORKER_DIED
    assert raised.value.data.death is not None
    assert raised.value.data.death.death_class == death_class
    assert raised.value.data.retriable
    assert text == "xxxxx"


def test_a_shutdown_leaves_no_process_and_status_0(start_supervisor: StartSupervisor, tmp_path: Path) -> None:
    fifo = tmp_path / "started"
    os.mkfifo(fifo)
    with fifo.open("r+b", buffering=0) as started:
        supervisor = start_supervisor("scripted_engine.py", str(fifo))
        with supervisor.connect() as client:
            assert count(client, 2) == "xx"
            workers = read_pids(started, 2)
            client.call("server/shutdown", {"drain_ms": 0})
            client.wait_closed()

    assert supervisor.process.wait(timeout=10) == 0
    assert [pid for pid in workers if psutil.pid_exists(pid)] == []
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
