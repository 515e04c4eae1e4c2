"""The faulty worker's life: the real one's, around another engine, with faults at its turning points."""

import argparse
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import msgspec

from mlxsup.protocol.descriptors import Pipes
from mlxsup.protocol.worker_link import Load
from mlxsup.worker.engine.interface import LoadEngine, ReportLoad
from mlxsup.worker.process import run_worker
from scripts.faulty_worker.engine import FaultyEngine
from scripts.faulty_worker.faults import Faults
from scripts.faulty_worker.ledger import Ledger
from scripts.faulty_worker.script import Fault

# What a load says that it reads, in pieces.
_LOAD_BYTES = 1000
_LOAD_PIECES = 20


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Of the command line. `only`: faults of a model's life strike where its folder has this name."""

    ledger: Path | None
    only: str | None
    load_ms: float
    resident_bytes: int
    idle_ms: float
    start: Fault | None
    load: Fault | None
    warm: Fault | None
    idle: Fault | None
    shutdown: Fault | None


def run(pipes: Pipes, arguments: list[str]) -> NoReturn:
    run_worker(pipes, prepare_engine(pipes, arguments))


def prepare_engine(pipes: Pipes, arguments: list[str]) -> Callable[[], LoadEngine]:
    """What `run_worker` wants of an engine, for programs that put something around this one."""
    options = read_options(arguments)
    faults = Faults(Ledger(options.ledger), pipes.outgoing)
    if options.start is not None:
        faults.strike(options.start)

    def load(order: Load, report: ReportLoad) -> FaultyEngine:
        return load_engine(options, faults, order, report)

    def import_engine() -> LoadEngine:
        # The worker only takes one function out of it, and its import takes longer than all else here.
        generate = ModuleType("mlx_lm.generate")
        generate.maybe_set_recommended_wired_limit = lambda: None  # type: ignore[attr-defined]
        sys.modules.setdefault("mlx_lm.generate", generate)
        return load

    return import_engine


def load_engine(options: Options, faults: Faults, order: Load, report: ReportLoad) -> FaultyEngine:
    struck = options.only is None or options.only == Path(order.model_path).name
    began_s = time.monotonic()
    report("weights", 0, _LOAD_BYTES)
    if options.load is not None and struck:
        faults.strike(options.load)
    for piece in range(1, _LOAD_PIECES + 1):
        time.sleep(options.load_ms / 1000 / _LOAD_PIECES)
        report("weights", _LOAD_BYTES * piece // _LOAD_PIECES, _LOAD_BYTES)
    # Every page is written to, or the system would not give it.
    weights = b"\1" * options.resident_bytes
    report("warm", 0, 1)
    if options.warm is not None and struck:
        faults.strike(options.warm)
    report("warm", 1, 1)
    if options.shutdown is not None and struck:
        _strike_before_exit(options.shutdown, faults)
    load_s = time.monotonic() - began_s
    engine = FaultyEngine(faults, weights, prefill_chunk_tokens=order.prefill_chunk_tokens, load_s=load_s)
    if options.idle is not None and struck:
        _strike_idle(options.idle, options.idle_ms / 1000, faults, engine)
    return engine


def _strike_idle(fault: Fault, after_s: float, faults: Faults, engine: FaultyEngine) -> None:
    """Once, and only if nothing is computed at that moment."""

    def strike() -> None:
        if not engine.sequences:
            faults.strike(fault)

    timer = threading.Timer(after_s, strike)
    timer.daemon = True
    timer.start()


def _strike_before_exit(fault: Fault, faults: Faults) -> None:
    """The last thing that a worker calls is `os._exit`."""
    exit_process = os._exit

    def strike_and_exit(status: int) -> NoReturn:
        if threading.current_thread() is threading.main_thread():
            faults.strike(fault)
        exit_process(status)

    os._exit = strike_and_exit


def read_options(arguments: list[str]) -> Options:
    """Exits with status 2 when they can't be read."""
    parser = argparse.ArgumentParser(prog="scripts/faulty_worker")
    parser.add_argument(
        "--ledger", type=Path, help="Where strikes are counted; all workers of a test have one."
    )
    parser.add_argument("--only", help="Faults in a model's life strike where its folder has this name.")
    parser.add_argument("--load-ms", type=float, default=0.0, help="How long a load takes.")
    parser.add_argument("--resident-bytes", type=int, default=0, help="What a model holds.")
    for moment, when in (
        ("start", "Before hello."),
        ("load", "While weights are read."),
        ("warm", "While a model is warmed up."),
        ("idle", "From another thread, --idle-ms after a load, if nobody asks for anything."),
        ("shutdown", "When it has been told to end, and has done everything but that."),
    ):
        parser.add_argument(f"--{moment}", type=_fault, metavar="FAULT", help=when)
    parser.add_argument("--idle-ms", type=float, default=0.0)
    return Options(**vars(parser.parse_args(arguments)))


def _fault(text: str) -> Fault:
    return msgspec.json.decode(text, type=Fault)
