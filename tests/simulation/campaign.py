"""Many schedules, in any number of processes."""

import gc
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager

from tests.simulation.checker import examine
from tests.simulation.coverage import count
from tests.simulation.draw import draw_schedule
from tests.simulation.report import Tally
from tests.simulation.stage import quiet
from tests.simulation.world import play

_CHUNK = 25


def run_schedules(
    first: int, schedules: int, processes: int = 1, on_progress: Callable[[Tally], None] = lambda _: None
) -> Tally:
    """Play and check them; `on_progress` gets what is known so far, again and again. KeyboardInterrupt ends it early."""
    total = Tally()
    chunks = [
        range(at, min(at + _CHUNK, first + schedules)) for at in range(first, first + schedules, _CHUNK)
    ]
    try:
        for tally in _run_chunks(chunks, processes):
            total.add(tally)
            on_progress(total)
    except KeyboardInterrupt:
        total.interrupted = True
    return total


def _run_chunks(chunks: list[range], processes: int) -> Iterator[Tally]:
    if processes == 1:
        yield from map(run_chunk, chunks)
        return
    # Spawned: a fork would take along whatever threads and run loops this process has.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(processes, context, initializer=_ignore_interrupts)
    try:
        for future in as_completed([executor.submit(run_chunk, chunk) for chunk in chunks]):
            yield future.result()
    finally:
        executor.shutdown(cancel_futures=True)


def _ignore_interrupts() -> None:
    """Ctrl-C reaches all processes of a terminal; the first one ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def run_chunk(seeds: range) -> Tally:
    tally = Tally()
    began_s = time.process_time()
    with quiet(), _without_collector():
        for seed in seeds:
            schedule = draw_schedule(seed)
            facts, faults = examine(schedule, play(schedule))
            tally.schedules += 1
            tally.seen += count(facts)
            if faults:
                tally.broken[seed] = faults
    tally.cpu_s = time.process_time() - began_s
    return tally


@contextmanager
def _without_collector() -> Iterator[None]:
    """Cycles are collected between chunks: it takes a tenth of the time otherwise."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
