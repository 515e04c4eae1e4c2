"""scripts/simulate: plays schedules and checks what happens; a failing one is shown by its seed.

Exit status: 0 all is well, 1 something is not, 130 interrupted by Ctrl-C.
"""

import os
import sys
import time

import click

from tests.simulation.campaign import run_schedules
from tests.simulation.checker import check
from tests.simulation.draw import draw_schedule
from tests.simulation.report import Tally, show_history, show_schedule, show_tally
from tests.simulation.stage import left_behind
from tests.simulation.world import play

_SHOW_S = 0.5


@click.command()
@click.option("--seed", type=click.IntRange(0), help="Play this one, and show all that happens.")
@click.option("--schedules", type=click.IntRange(1), default=1000, show_default=True, help="How many.")
@click.option("--first", type=click.IntRange(0), default=0, show_default=True, help="The first one's seed.")
@click.option("--processes", type=click.IntRange(1, 64), default=2, show_default=True)
def main(seed: int | None, schedules: int, first: int, processes: int) -> None:
    """Simulates the supervisor: real code, workers in memory, a clock that jumps, and everything that can go wrong.

    Each schedule follows from its seed alone.
    """
    sys.exit(_show(seed) if seed is not None else _run(first, schedules, processes))


def _show(seed: int) -> int:
    schedule = draw_schedule(seed)
    history = play(schedule, with_logs=True)
    for line in (*show_schedule(schedule), *show_history(history)):
        click.echo(line)
    faults = check(schedule, history)
    for fault in faults:
        click.echo(f"WRONG  {fault}")
    return 1 if faults else 0


def _run(first: int, schedules: int, processes: int) -> int:
    began_s = shown_s = time.monotonic()
    is_terminal = sys.stderr.isatty()

    def show(tally: Tally) -> None:
        nonlocal shown_s
        now_s = time.monotonic()
        if is_terminal and now_s - shown_s > _SHOW_S:
            shown_s = now_s
            rate = tally.schedules / (now_s - began_s)
            left_s = (schedules - tally.schedules) / rate
            click.echo(
                f"\r{tally.schedules} of {schedules}, {rate:.0f}/s, {left_s:.0f} s left, {len(tally.broken)} failed ",
                nl=False,
                err=True,
            )

    tally = run_schedules(first, schedules, processes, show)
    if is_terminal:
        click.echo("\r\x1b[K", nl=False, err=True)
    for line in show_tally(tally, first):
        click.echo(line)
    if tally.interrupted:
        return 130
    return 1 if tally.broken else 0


def leave() -> None:
    try:
        main(prog_name="scripts/simulate")
    except SystemExit as ended:
        if not left_behind:
            raise
        sys.stdout.flush()
        os._exit(ended.code if isinstance(ended.code, int) else 1)


if __name__ == "__main__":
    leave()
