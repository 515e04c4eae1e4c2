"""Where a schedule is played: trio without chance, and the supervisor's edges replaced by what a world says.

All that the supervisor reaches the machine through is here: threads, signals, the disk, processes, memory, randomness.
Everything else of it is the real one.
"""

import io
import logging
import math
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import trio
from trio._core import _run
from trio.testing import MockClock

from mlxsup.supervisor import application, text_requests
from mlxsup.supervisor.pool import pool
from mlxsup.supervisor.pool.life import Life

# Far beyond what any schedule takes between two moments of its clock.
_TURNS_MAX = 100_000
# For what is cancelled after it has hung.
_PATIENCE_S = 1000.0


class HungError(Exception):
    """Nothing happens any more, or nothing but what takes no time; the text shows where each task waits."""


class Machine:
    """What the supervisor's edges do in a schedule; the world overrides all of it."""

    make_pool: Callable[..., Any]
    make_book: Callable[..., Any]
    make_recorder: Callable[..., Any]
    open_signals: Callable[..., Any]
    run_in_thread: Callable[..., Awaitable[Any]]
    rng: random.Random
    note_given: Callable[..., None]
    gpu_panics: Callable[..., int]


@contextmanager
def staged(machine: Machine) -> Iterator[None]:
    with (
        mock.patch.object(application, "Pool", machine.make_pool),
        mock.patch.object(application, "DeathBook", machine.make_book),
        mock.patch.object(application, "DeathRecorder", machine.make_recorder),
        mock.patch.object(application, "gpu_panics", machine.gpu_panics),
        mock.patch.object(text_requests, "secrets", SimpleNamespace(randbits=machine.rng.getrandbits)),
        mock.patch.object(Life, "start", _note_first(Life.start, machine.note_given)),
        mock.patch.object(pool, "random", SimpleNamespace(Random=lambda: machine.rng)),
        mock.patch.object(trio, "open_signal_receiver", machine.open_signals),
        mock.patch.object(trio.to_thread, "run_sync", machine.run_in_thread),
    ):
        yield


def _note_first(function: Callable[..., Any], note: Callable[..., None]) -> Callable[..., Any]:
    def do(*args: Any) -> Any:
        note(*args)
        return function(*args)

    return do


@contextmanager
def quiet() -> Iterator[None]:
    """Without logs: writing them takes longer than the schedules."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def run_by_seed(seed: int, main: Callable[[], Awaitable[None]], limit_s: float) -> None:
    """`trio.run` on the mock clock; which task is next of those that could be is decided by `seed` alone.

    Raises:
        HungError: something still waits when the clock has reached `limit_s`, or nothing can ever happen.
    """
    clock = _Clock(limit_s)
    # Trio's own switch, which its plugin for Hypothesis uses; there is no public one.
    with (
        mock.patch.object(_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True),
        mock.patch.object(_run, "_r", random.Random(seed)),
    ):
        try:
            trio.run(main, clock=clock.mock)
        except BaseException as error:
            if clock.hung is None or isinstance(error, KeyboardInterrupt):
                raise
    if clock.hung is not None:
        raise clock.hung


class _Clock:
    """Jumps exactly to the next deadline, and never beyond `limit_s`: then everything is cancelled, shielded or not."""

    def __init__(self, limit_s: float) -> None:
        self.mock = MockClock(autojump_threshold=0)
        self.hung: HungError | None = None
        self._limit_s = limit_s
        self._now_s = 0.0
        self._turns = 0
        # It can't be subclassed.
        vars(self.mock).update(current_time=self._current_time, _autojump=self._jump)

    def _current_time(self) -> float:
        self._turns += 1
        if self._turns > _TURNS_MAX:
            self._end(f"something turns in a circle at {self._now_s:.3f} s")
        return self._now_s

    def _jump(self) -> None:
        deadline_s = _run.GLOBAL_RUN_CONTEXT.runner.deadlines.next_deadline()
        if deadline_s > self._limit_s:
            self._end(
                "something waits for ever"
                if deadline_s == math.inf
                else f"it is not over at {self._limit_s:.0f} s"
            )
        else:
            self._now_s, self._turns = max(self._now_s, deadline_s), 0

    def _end(self, why: str) -> None:
        runner = _run.GLOBAL_RUN_CONTEXT.runner
        if self.hung is not None:
            # It has been cancelled before. What it leaves behind must not be finalised in another run.
            left_behind.append(runner.tasks)
            raise self.hung
        self.hung = HungError(f"{why}\n{_describe_tasks()}")
        self._limit_s, self._turns = self._now_s + _PATIENCE_S, 0
        for task in runner.tasks:
            status: _run.CancelStatus | None = task._cancel_status
            while status is not None:
                status._scope.shield = False
                status = status._parent
        assert runner.main_task is not None
        assert runner.main_task.parent_nursery is not None
        runner.main_task.parent_nursery.cancel_scope.cancel()


left_behind: list[Any] = []
"""Tasks that could not be ended. They complain at the end of the process, unless it leaves by `os._exit`."""


def _describe_tasks() -> str:
    out = io.StringIO()
    root = trio.lowlevel.current_root_task()
    todo = [(root, 0)] if root is not None else []
    while todo:
        task, depth = todo.pop()
        frames = [f"{frame.f_code.co_qualname}:{line}" for frame, line in task.iter_await_frames()]
        # The last two are how trio gives up the processor.
        out.write(f"{'  ' * depth}{task.name}: {' > '.join(frames[-5:-2])}\n")
        todo += [(child, depth + 1) for nursery in task.child_nurseries for child in nursery.child_tasks]
    return out.getvalue()
