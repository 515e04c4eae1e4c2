"""A worker that does to itself what it is told, at any moment: for deaths that nobody can cause from outside.

SIGUSR2 makes it read `ORDERS/<its pid>`, and obey on its MLX thread: at once, or where MLX would raise, with the next
progress of a load or the next step of a batch. All else is the real worker, around the real engine or the faulty one.
"""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import msgspec

from mlxsup.protocol.descriptors import Pipes, claim_pipes
from mlxsup.protocol.worker_link import Load
from mlxsup.worker.engine.interface import Emission, Engine, IsWanted, LoadEngine, ReportLoad
from scripts.soak.causes import Cause


class Command(msgspec.Struct, frozen=True):
    """`words` are those of the exception that a METAL raises."""

    cause: Cause
    words: str = ""


def tell(orders: Path, pid: int, command: Command) -> None:
    """To one that `obeys`. Raises ProcessLookupError when there is no such process."""
    (orders / str(pid)).write_bytes(msgspec.json.encode(command))
    os.kill(pid, signal.SIGUSR2)


def obeys(orders: Path, pid: int) -> bool:
    """Before, the signal would just end it."""
    return (orders / f"{pid}.obeys").exists()


class Obedience:
    def __init__(self, orders: Path, warm_s: float) -> None:
        self._orders = orders
        self._warm_s = warm_s
        self._words = ""
        signal.signal(signal.SIGUSR2, self._obey)
        (orders / f"{os.getpid()}.obeys").touch()

    def _obey(self, _number: int, _frame: object) -> None:
        path = self._orders / str(os.getpid())
        command = msgspec.json.decode(path.read_bytes(), type=Command)
        path.unlink()
        match command.cause:
            case Cause.EXIT0:
                os._exit(0)
            case Cause.SEGV:
                _segfault()
            case Cause.METAL:
                self._words = command.words

    def check(self) -> None:
        """Raises what MLX would raise."""
        if self._words:
            raise RuntimeError(self._words)

    def around(self, load: LoadEngine) -> LoadEngine:
        def load_obedient(order: Load, report: ReportLoad) -> Engine:
            def report_checked(phase: str, done: int, total: int) -> None:
                report(phase, done, total)
                self.check()
                if phase == "warm" and not done:
                    time.sleep(self._warm_s)

            engine = load(order, report_checked)
            step = engine.step

            def step_checked(is_wanted: IsWanted) -> list[Emission] | None:
                self.check()
                return step(is_wanted)

            engine.step = step_checked  # type: ignore[method-assign]
            return engine

        return load_obedient


def _segfault() -> NoReturn:
    import mlx.core as mx

    from scripts.faulty_worker.native_faults import read_null

    # No memory holds it. MLX's CPU backend writes where there is none; Metal refuses it in time.
    with suppress(RuntimeError):
        mx.eval(mx.zeros((1 << 20, 1 << 16)))
    read_null()


def run(orders: Path, faulty: tuple[str, ...] | None, warm_s: float, margins: Path | None) -> NoReturn:
    """`faulty` are the arguments of the faulty worker, None for the real engine. A warm-up takes `warm_s` longer.

    With `margins` the real engine finds the texts that rounding decides, and tells them there.
    """
    pipes = claim_pipes()
    obedience = Obedience(orders, warm_s)

    # Nothing that could print may be imported before the pipes are safe.
    from mlxsup.worker.process import run_worker

    import_engine = _text_engine(margins) if faulty is None else _faulty_engine(pipes, faulty)
    run_worker(pipes, lambda: obedience.around(import_engine()))


def _text_engine(margins: Path | None) -> Callable[[], LoadEngine]:
    def import_engine() -> LoadEngine:
        from mlxsup.worker.engine.text import TextEngine

        if margins is not None:
            from scripts.soak.margins import watch_margins

            watch_margins(margins)
        return TextEngine.load

    return import_engine


def _faulty_engine(pipes: Pipes, arguments: tuple[str, ...]) -> Callable[[], LoadEngine]:
    from scripts.faulty_worker.worker import prepare_engine

    return prepare_engine(pipes, list(arguments))
