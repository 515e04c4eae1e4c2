"""kill -9 of the supervisor leaves no worker after a second, whatever the worker is doing."""

import os
import select
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from mlxsup.protocol.client.exchange import Notification
from mlxsup.protocol.service import Progress
from tests.process.worker.conftest import WAIT_S, StartSupervisor, Supervisor, read_pids

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs a pidfd")

MODEL = "smollm2-135m"


def kill_and_count_survivors(supervisor: Supervisor, workers: list[int], after_s: float) -> int:
    """A pidfd tells of the end itself: an orphan may stay a zombie where nobody adopts it."""
    with ExitStack() as stack:
        pidfds = [os.pidfd_open(pid) for pid in workers]
        for pidfd in pidfds:
            stack.callback(os.close, pidfd)
        supervisor.process.kill()
        deadline_s = time.monotonic() + after_s
        return sum(not _ends_before(pidfd, deadline_s) for pidfd in pidfds)


def _ends_before(pidfd: int, deadline_s: float) -> bool:
    ended = select.poll()
    ended.register(pidfd, select.POLLIN)
    return bool(ended.poll(max(0.0, deadline_s - time.monotonic()) * 1000))


def test_an_idle_worker_and_a_spare_end_with_their_supervisor(
    start_supervisor: StartSupervisor, tmp_path: Path
) -> None:
    fifo = tmp_path / "started"
    os.mkfifo(fifo)
    with fifo.open("r+b", buffering=0) as started:
        supervisor = start_supervisor("scripted_engine.py", str(fifo))
        with supervisor.connect() as client:
            client.call("model/load", {"model": MODEL})
            workers = read_pids(started, 2)
            assert supervisor.serving().pid in workers
            assert kill_and_count_survivors(supervisor, workers, 1.0) == 0


def test_a_worker_that_loads_a_real_model_ends_with_its_supervisor(start_supervisor: StartSupervisor) -> None:
    supervisor = start_supervisor()
    with supervisor.connect() as client:

        class LoadingError(Exception):
            pass

        def stop_waiting(notification: Notification) -> None:
            if isinstance(notification, Progress) and notification.value["bytes_done"] > 0:
                raise LoadingError

        with pytest.raises(LoadingError):
            client.call("model/load", {"model": MODEL}, stop_waiting)
        (worker,) = supervisor.children()
        assert kill_and_count_survivors(supervisor, [worker.pid], 1.0) == 0


def test_a_worker_that_is_stopped_ends_with_its_supervisor(
    start_supervisor: StartSupervisor, tmp_path: Path
) -> None:
    """It can see nothing, and do nothing, until something wakes it."""
    fifo = tmp_path / "started"
    os.mkfifo(fifo)
    with fifo.open("r+b", buffering=0) as started:
        supervisor = start_supervisor("scripted_engine.py", str(fifo))
        with supervisor.connect() as client:
            client.call("model/load", {"model": MODEL})
            workers = read_pids(started, 2)
            for worker in workers:
                os.kill(worker, signal.SIGSTOP)
            assert kill_and_count_survivors(supervisor, workers, 1.0) == 0


@pytest.mark.parametrize("verb", ["hold", "hang"])
def test_a_worker_stuck_in_native_code_ends_with_its_supervisor(
    start_supervisor: StartSupervisor, tmp_path: Path, verb: str
) -> None:
    supervisor = start_supervisor("scripted_engine.py")
    fifo = tmp_path / "stuck"
    os.mkfifo(fifo)
    # For reading and writing, so that opening it does not wait for the worker.
    with fifo.open("r+b", buffering=0) as stuck, supervisor.connect() as client:
        client.stream("generate", {"model": MODEL, "prompt": f"{verb} {fifo}"})
        readable, _, _ = select.select([stuck], [], [], WAIT_S)
        assert readable
        assert kill_and_count_survivors(supervisor, [supervisor.serving().pid], 1.0) == 0


@pytest.mark.parametrize("stuck", [False, True], ids=["an idle worker", "a worker stuck in native code"])
def test_what_a_worker_has_forked_ends_with_its_supervisor(
    start_supervisor: StartSupervisor, tmp_path: Path, stuck: bool
) -> None:
    supervisor = start_supervisor("scripted_engine.py")
    fifo = tmp_path / "forked"
    os.mkfifo(fifo)
    with fifo.open("r+b", buffering=0) as forked, supervisor.connect() as client:
        client.call("generate", {"model": MODEL, "prompt": f"fork {fifo}"})
        (child,) = read_pids(forked, 1)
        if stuck:
            client.stream("generate", {"model": MODEL, "prompt": f"hold {fifo}"})
            readable, _, _ = select.select([forked], [], [], WAIT_S)
            assert readable
        assert kill_and_count_survivors(supervisor, [supervisor.serving().pid, child], 1.0) == 0
