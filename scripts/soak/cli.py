"""The command line of the soak: how many deaths, of what, under which load."""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from scripts.soak.causes import Cause

if TYPE_CHECKING:
    from scripts.soak.setting import Soak

_ALL = "all"


@click.group(invoke_without_command=True, subcommand_metavar="")
@click.option("--deaths", type=click.IntRange(1), default=1000, show_default=True, help="Workers to strike.")
@click.option(
    "--model",
    help="A real model, with the real worker. Without it: an engine whose texts are known beforehand.",
)
@click.option(
    "--cause",
    "causes",
    multiple=True,
    default=("kill",),
    show_default=True,
    type=click.Choice([*(cause.value for cause in Cause), _ALL]),
    help="What workers die of; may be given several times.",
)
@click.option(
    "--streams", type=click.IntRange(1), default=8, show_default=True, help="That go on all the time."
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of requests, moments and causes.")
@click.option(
    "--second-model/--no-second-model",
    default=True,
    show_default=True,
    help="Another model's streams run beside it, and may not notice.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON text instead of tables.")
@click.pass_context
def main(
    context: click.Context,
    deaths: int,
    model: str | None,
    causes: tuple[str, ...],
    streams: int,
    seed: int,
    second_model: bool,
    as_json: bool,
) -> None:
    """Strikes workers of a real supervisor at random moments, under a load of streams, and checks all that they get.

    Progress goes to stderr, the tables to stdout. Exits with status 1 when an invariant does not hold.
    """
    if context.invoked_subcommand is not None:
        return
    from scripts.soak.setting import Soak

    chosen = tuple(Cause) if _ALL in causes else tuple(map(Cause, causes))
    soak = Soak(
        model=model,
        deaths=deaths,
        causes=chosen,
        streams=streams,
        other_streams=(1 if model else 2) if second_model else 0,
        seed=seed,
    )
    sys.exit(_run(soak, as_json=as_json))


def _run(soak: "Soak", *, as_json: bool) -> int:
    """The exit status."""
    import logging

    from scripts.benchmarks.report import Report
    from scripts.soak.run import run_soak
    from scripts.soak.setting import PROGRAM, find_model
    from scripts.soak.verdict import judge

    logging.basicConfig(level=logging.ERROR)
    report = Report(soak.arguments, soak.seed, PROGRAM)
    report.say(f"seed {soak.seed}; to run it again: {soak.command}")
    folder = Path(tempfile.mkdtemp(prefix="mlxsup-chaos-"))
    findings = run_soak(soak, folder, find_model(soak), report.say)
    section = judge(soak, findings)
    report.add(section)
    missed = [goal for goal in section.goals if not goal.met]
    for goal in missed:
        report.say(f"{goal}; to run it again: {soak.command}")
    if missed:
        report.say(f"the supervisor's log and death reports are in {folder}")
    else:
        shutil.rmtree(folder)
    report.close(as_json=as_json, check=True)
    return 130 if findings.interrupted else 0


@main.command(hidden=True)
@click.argument("orders", type=click.Path(path_type=Path))
@click.option("--faulty", is_flag=True, help="The faulty worker's engine, with ARGUMENTS.")
@click.option("--warm-s", default=0.0, help="How much longer a warm-up takes.")
@click.option(
    "--margins", type=click.Path(path_type=Path), help="Where texts that rounding decides are told."
)
@click.argument("arguments", nargs=-1)
def worker(
    orders: Path, faulty: bool, warm_s: float, margins: Path | None, arguments: tuple[str, ...]
) -> None:
    """A worker that does to itself what ORDERS tells it."""
    from scripts.soak.worker import run

    run(orders, arguments if faulty else None, warm_s, margins)
