"""Decisions that fit in a table: what a death is called, what a worker inherits, which states follow."""

import pytest

from mlxsup.supervisor.pool.deaths import describe_death, explain_death
from mlxsup.supervisor.pool.launch import worker_command, worker_environment
from mlxsup.supervisor.pool.lifecycle import FOLLOWS, WorkerState
from mlxsup.supervisor.pool.stderr_tail import StderrTail


@pytest.mark.parametrize(
    ("returncode", "death_class", "signal", "exit_status"),
    [
        (-9, "killed", "SIGKILL", None),
        (-11, "segmentation_fault", "SIGSEGV", None),
        (-6, "aborted", "SIGABRT", None),
        (-15, "terminated", "SIGTERM", None),
        (-1000, "signalled", "signal 1000", None),
        (0, "clean_unexpected", None, 0),
        (64, "bad_configuration", None, 64),
        (70, "gpu_error", None, 70),
        (78, "protocol_error", None, 78),
        (3, "exited", None, 3),
    ],
)
def test_each_end_has_a_class_and_keeps_its_facts(
    returncode: int, death_class: str, signal: str | None, exit_status: int | None
) -> None:
    death = explain_death(returncode, "ready")

    assert (death.death_class, death.signal, death.exit_status) == (death_class, signal, exit_status)
    assert str(signal or exit_status) in describe_death(death)


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


def test_every_state_can_be_reached_and_left() -> None:
    assert set(FOLLOWS) == set(WorkerState)
    assert set().union(*FOLLOWS.values()) == set(WorkerState)
    assert all(FOLLOWS.values())


def test_the_tail_of_stderr_is_bounded_in_lines_and_in_bytes() -> None:
    tail = StderrTail(lines_max=3, line_bytes_max=5)
    completed = (
        tail.feed(b"one\ntwo\nabcdefghi") + tail.feed(b"jkl\nthree\n") + tail.feed(b"x" * 100) + tail.finish()
    )

    assert completed == ["one", "two", "abcde", "three", "xxxxx"]
    assert tail.lines == ("abcde", "three", "xxxxx")


def test_bytes_of_stderr_that_are_no_text_are_kept_as_replacement_characters() -> None:
    tail = StderrTail(lines_max=3, line_bytes_max=50)

    assert tail.feed(b"\xff\xfe\r\n") == ["\ufffd\ufffd"]
