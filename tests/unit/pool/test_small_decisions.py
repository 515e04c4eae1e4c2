"""Decisions that fit in a table: what a worker inherits, which states follow."""

import pytest

from mlxsup.supervisor.pool.launch import share_of_cores, worker_command, worker_environment
from mlxsup.supervisor.pool.lifecycle import FOLLOWS, WorkerState
from mlxsup.supervisor.pool.stderr_tail import StderrTail


def test_a_worker_inherits_no_secret_and_nothing_that_loads_code() -> None:
    own = {
        "PATH": "/bin",
        "HOME": "/h",
        "HF_TOKEN": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "PYTHONPATH": "/evil",
        "LD_PRELOAD": "/evil.so",
        "DYLD_INSERT_LIBRARIES": "/evil.dylib",
        "MLX_METAL_FAST_SYNCH": "1",
    }

    environment = worker_environment(own, {"LD_PRELOAD": "/bridge.so"})

    assert environment["PATH"] == "/bin"
    assert environment["LD_PRELOAD"] == "/bridge.so"
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert (
        not {"HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "PYTHONPATH", "DYLD_INSERT_LIBRARIES"} & environment.keys()
    )
    assert "MLX_METAL_FAST_SYNCH" not in environment


def test_a_configured_command_replaces_our_own() -> None:
    assert worker_command(("nice", "worker")) == ["nice", "worker"]
    assert worker_command(())[1:] == ["-P", "-m", "mlxsup.worker"]


@pytest.mark.parametrize(
    ("cores", "models", "threads"), [(1, 1, 1), (2, 1, 1), (8, 1, 7), (8, 2, 3), (8, 7, 1), (8, 20, 1)]
)
def test_a_worker_leaves_cores_to_the_supervisor_and_to_the_other_models(
    cores: int, models: int, threads: int
) -> None:
    assert share_of_cores(cores, models) == threads


def test_every_state_can_be_reached_and_left() -> None:
    assert set(FOLLOWS) == set(WorkerState)
    assert set().union(*FOLLOWS.values()) == set(WorkerState)
    assert all(FOLLOWS.values())


def test_a_worker_that_died_has_been_stopped_first_and_the_next_begins_anew() -> None:
    down = {WorkerState.BACKOFF, WorkerState.QUARANTINED, WorkerState.FAILED, WorkerState.STOPPED}

    assert FOLLOWS[WorkerState.STOPPING] == down
    assert all(WorkerState.SPAWNING in FOLLOWS[state] for state in down)
    assert not any(WorkerState.READY in FOLLOWS[state] for state in down)


def test_the_tail_of_stderr_is_bounded_in_lines_and_in_bytes() -> None:
    tail = StderrTail(lines_max=3, line_bytes_max=5)
    completed = (
        tail.feed(b"one\ntwo\nabcdefghi", 0.0)
        + tail.feed(b"jkl\nthree\n", 0.0)
        + tail.feed(b"x" * 100, 0.0)
        + tail.finish()
    )

    assert completed == ["one", "two", "abcde", "three", "xxxxx"]
    assert tail.lines == ("abcde", "three", "xxxxx")


def test_lines_of_stderr_are_as_old_as_their_last_byte() -> None:
    tail = StderrTail(lines_max=3, line_bytes_max=50)
    tail.feed(b"gone\none\ntw", 1.0)
    tail.feed(b"o\nopen", 2.0)
    tail.finish()

    assert tail.lines == ("one", "two", "open")
    assert [tail.count_before(moment_s) for moment_s in (1.0, 1.5, 2.0, 2.5)] == [0, 1, 1, 3]


def test_bytes_of_stderr_that_are_no_text_are_kept_as_replacement_characters() -> None:
    tail = StderrTail(lines_max=3, line_bytes_max=50)

    assert tail.feed(b"\xff\xfe\r\n", 0.0) == ["\ufffd\ufffd"]
