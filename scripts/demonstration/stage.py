"""What every act stands on: how it speaks, and a supervisor that ends with the demonstration. Task."""

import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Self

import click
import msgspec
import trio

from mlxsup.protocol.client.aio import Client

MODEL = "smollm2-135m"
MLXSUP = str(Path(sys.executable).with_name("mlxsup"))

_LISTENING = b"listening on"
_LOG_LINES_MAX = 20
_START_S = 60.0
_STOP_S = 20.0

_act_numbers = count(1)


class ActFailedError(Exception):
    """The demonstration did not show what it should; the text says what it showed instead."""


def announce(title: str, command: str | None = None) -> None:
    """The heading of the next act, with the command that a person would type for it."""
    typed = click.style(f"   $ {command}", dim=True) if command else ""
    click.echo(f"\n{click.style(f'{next(_act_numbers)}  {title}', fg='cyan', bold=True)}{typed}")


def say(text: str) -> None:
    click.echo(f"   {text}")


class OwnSupervisor:
    """Made by `running`, and ended with its block."""

    def __init__(self, process: trio.Process, log: list[str]) -> None:
        self._process = process
        self._log = log
        self._listening = trio.Event()

    @property
    def pid(self) -> int:
        return self._process.pid

    @classmethod
    @asynccontextmanager
    async def running(cls, environment: Mapping[str, str], log: list[str]) -> AsyncIterator[Self]:
        """`mlxsup start`, once it listens. `log` is kept at the last lines that it has logged."""
        announce("Start a supervisor", "mlxsup start")
        process = await trio.lowlevel.open_process(
            [MLXSUP, "start"],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            # A terminal's Ctrl-C is ours to handle: it shall not drain what is about to be ended.
            start_new_session=True,
        )
        # No await between the start and this `try`: a cancellation there would leave it behind.
        try:
            supervisor = cls(process, log)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(supervisor._read_log)
                with trio.fail_after(_START_S):
                    await supervisor._listening.wait()
                say(f"process {process.pid} listens on a Unix socket in a temporary folder")
                yield supervisor
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await _end(process)

    async def wait(self) -> int:
        """Its exit status, once it has ended."""
        return await self._process.wait()

    async def _read_log(self) -> None:
        assert self._process.stderr is not None
        rest = b""
        async for chunk in self._process.stderr:
            *lines, rest = (rest + chunk).split(b"\n")
            self._log.extend(line.decode(errors="replace") for line in lines)
            del self._log[:-_LOG_LINES_MAX]
            if any(_LISTENING in line for line in lines):
                self._listening.set()
        if not self._listening.is_set():
            raise ActFailedError("the supervisor ended before it listened")


async def _end(process: trio.Process) -> None:
    """SIGTERM, a grace, SIGKILL. Its workers end with it, however it ends."""
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
        with trio.move_on_after(_STOP_S):
            await process.wait()
    if process.returncode is None:
        process.kill()
        await process.wait()
    if process.stderr is not None:
        await process.stderr.aclose()


class Stage(msgspec.Struct, kw_only=True):
    """What the acts share, and what one has measured for a later one to tell."""

    client: Client
    environment: Mapping[str, str]
    supervisor: OwnSupervisor
    tokens_per_second: float = 0.0
    first_token_s: list[float] = msgspec.field(default_factory=list)
