"""Performs the acts, in order.

Whatever ends it, the supervisor and its workers have ended before this process does.
"""

import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import click
import trio

from mlxsup.protocol.client.aio import ConnectionLostError, RpcError, connect
from scripts.demonstration import acts
from scripts.demonstration.stage import ActFailedError, OwnSupervisor, Stage

_ACT_S = 300.0  # for a slow machine; on two cores the longest takes about ten seconds


async def _perform(environment: Mapping[str, str], log: list[str]) -> None:
    click.secho("mlxsup: one process supervises, one process for each model computes", bold=True)
    await acts.fetch(environment)
    async with (
        OwnSupervisor.running(environment, log) as supervisor,
        connect(environment["MLXSUP_SOCKET"]) as client,
    ):
        stage = Stage(client=client, environment=environment, supervisor=supervisor)
        for act in acts.ACTS:
            with trio.fail_after(_ACT_S):
                await act(stage)


@contextmanager
def _own_environment() -> Iterator[Mapping[str, str]]:
    """One in which nobody's own configuration or supervisor has a part."""
    with tempfile.TemporaryDirectory(prefix="mlxsup-") as folder:
        config = Path(folder, "config.toml")
        config.touch()
        socket = Path(folder, "mlxsup.sock")
        own = {"MLXSUP_CONFIG": str(config), "MLXSUP_SOCKET": str(socket), "MLXSUP_STATE": folder}
        yield {**os.environ, **own}


async def _watch_signals(
    performance: trio.CancelScope,
    caught: list[int],
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as arrivals:
        task_status.started()
        async for number in arrivals:
            # Only the first counts: ending everything is under way and bounded.
            caught.append(number)
            performance.cancel()


async def _run(environment: Mapping[str, str], caught: list[int], log: list[str]) -> None:
    async with trio.open_nursery() as nursery:
        performance = trio.CancelScope()
        await nursery.start(_watch_signals, performance, caught)
        with performance:
            await _perform(environment, log)
        nursery.cancel_scope.cancel()


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def main() -> int:
    """Returns the exit status."""
    caught: list[int] = []
    log: list[str] = []
    failures: list[str] = []
    try:
        with _own_environment() as environment:
            trio.run(_run, environment, caught, log)
    except* BrokenPipeError:
        # Whoever read our output has seen enough; Python would complain once more at its exit.
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
        failures.append("nobody reads what this prints")
    except* trio.TooSlowError:
        failures.append(f"an act took longer than {_ACT_S:.0f} s")
    except* (ActFailedError, RpcError, ConnectionLostError) as group:
        failures.extend(str(error) for error in _leaves(group))
    if caught:
        click.echo("\ninterrupted; everything has ended", err=True)
        return 128 + caught[0]
    if failures:
        for line in log:
            click.secho(f"   supervisor: {line}", err=True, dim=True)
        click.secho(f"demo: {failures[0]}", err=True, fg="red")
        return 1
    return 0
