"""`mlxsup top` in a real terminal, beside a real supervisor."""

import json
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import psutil
import pytest
import trio

from mlxsup.protocol.client.aio import Client
from scripts.faulty_worker.script import Script
from tests.process.recovery.asking import endless
from tests.process.recovery.conftest import StartStand
from tests.process.recovery.setting import LIMIT_S, ONE
from tests.process.recovery.stand import Stand
from tests.process.recovery.terminal import Terminal

pytestmark = pytest.mark.slow

ENTERED = r"\x1b\[\?1049h"
LEFT = r"\x1b\[\?1049l"
# So it does not draw by itself while a test looks at something else.
RARELY_S = "60"

OpenTerminal = Callable[..., Terminal]


@pytest.fixture
def open_terminal() -> Iterator[OpenTerminal]:
    """Call it with a stand and arguments of `mlxsup`."""
    with ExitStack() as stack:

        def open_one(stand: Stand, *arguments: str) -> Terminal:
            command = [sys.executable, "-P", "-m", "mlxsup.supervisor", *arguments]
            terminal = Terminal(command, stand.environment, stand.folder)
            stack.callback(terminal.close)
            return terminal

        yield open_one


@asynccontextmanager
async def streaming(client: Client) -> AsyncIterator[None]:
    """While one answer is computed."""
    async with client.stream("generate", endless(ONE, Script(seed=1, token_ms=2))) as stream:
        await anext(stream)
        yield


def assert_left_as_found(terminal: Terminal, status: int) -> None:
    terminal.read_past(LEFT)
    ended = terminal.read_past(r"ended with (\d+), modes (\S+)\r\n")
    assert (int(ended[1]), ended[2]) == (status, terminal.modes)


async def test_it_shows_a_stream_and_its_rate_and_q_leaves_the_terminal_as_it_was(
    start: StartStand, open_terminal: OpenTerminal
) -> None:
    stand = start()
    async with stand.client() as client, streaming(client):
        terminal = open_terminal(stand, "top", "--interval-s", "0.2")
        await trio.to_thread.run_sync(terminal.read_past, ENTERED)
        # Tokens a second, once it has looked twice.
        row = await trio.to_thread.run_sync(
            terminal.read_past, rf"{ONE} +[^\n]*ready[^\n]* 1 +0 +(\d+)[^\n]*\n"
        )
        await trio.to_thread.run_sync(terminal.read_past, "run 1 normal")
        terminal.press(b"q")
        await trio.to_thread.run_sync(assert_left_as_found, terminal, 0)
    stand.end()
    assert int(row[1]) > 0


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (lambda terminal: terminal.press(b"\x03"), 0),
        (lambda terminal: terminal.command.send_signal(signal.SIGTERM), 128 + signal.SIGTERM),
    ],
    ids=["ctrl-c", "sigterm"],
)
def test_a_signal_leaves_the_terminal_as_it_was(
    start: StartStand, open_terminal: OpenTerminal, end: Callable[[Terminal], None], status: int
) -> None:
    stand = start()
    terminal = open_terminal(stand, "top", "--interval-s", RARELY_S)
    terminal.read_past("q ends")
    end(terminal)
    assert_left_as_found(terminal, status)
    stand.end()


def test_a_pause_gives_the_terminal_to_the_shell_and_takes_it_again(
    start: StartStand, open_terminal: OpenTerminal
) -> None:
    stand = start()
    terminal = open_terminal(stand, "top", "--interval-s", RARELY_S)
    terminal.read_past("q ends")
    terminal.press(b"\x1a")
    terminal.read_past(LEFT)
    paused = terminal.read_past(r"paused, modes (\S+)\r\n")
    terminal.press(b"\n")
    terminal.read_past(ENTERED)
    terminal.read_past("q ends")
    terminal.press(b"q")
    assert_left_as_found(terminal, 0)
    stand.end()
    assert paused[1] == terminal.modes


def test_it_ends_with_the_window_that_it_is_in(start: StartStand, open_terminal: OpenTerminal) -> None:
    stand = start()
    terminal = open_terminal(stand, "top", "--interval-s", "0.2")
    terminal.read_past("q ends")
    command = terminal.command
    terminal.close()
    _, alive = psutil.wait_procs([command], LIMIT_S)
    stand.end()
    assert not alive


def test_it_is_drawn_again_as_wide_as_the_terminal_has_become(
    start: StartStand, open_terminal: OpenTerminal
) -> None:
    stand = start()
    terminal = open_terminal(stand, "top", "--interval-s", RARELY_S)
    terminal.read_past("q ends")
    terminal.resize(rows=24, columns=20)
    terminal.read_past(r"requests: 0 running…")
    terminal.press(b"s")
    terminal.resize(rows=24, columns=120)
    terminal.read_past(r"DIED")
    terminal.read_past(r"s sorts \(by tokens\)")
    terminal.press(b"q")
    assert_left_as_found(terminal, 0)
    stand.end()


def test_a_supervisor_that_goes_is_missed_and_its_successor_is_shown(
    start: StartStand, open_terminal: OpenTerminal
) -> None:
    stand = start()
    terminal = open_terminal(stand, "top", "--interval-s", "0.2")
    terminal.read_past("q ends")
    stand.end()
    terminal.read_past("trying again: ")
    again = start()
    terminal.read_past("q ends")
    terminal.press(b"q")
    assert_left_as_found(terminal, 0)
    again.end()


async def test_one_frame_for_a_script_has_rates_and_nothing_that_moves_a_cursor(start: StartStand) -> None:
    stand = start()
    async with stand.client() as client, streaming(client):
        shown = await trio.to_thread.run_sync(stand.mlxsup, "top", "--once", "--interval-s", "0.5")
        told: dict[str, Any] = json.loads(
            await trio.to_thread.run_sync(stand.mlxsup, "top", "--json", "--interval-s", "0.5")
        )
    stand.end()

    assert "\x1b" not in shown
    assert "run 1 normal" in shown
    assert [model["name"] for model in told["models"]] == [ONE, "other", "smollm2-135m"]
    assert told["stats"]["activity"][ONE]["running"]["normal"] == 1
    assert told["rates"]["models"][ONE]["completion_tokens"] > 0
    assert told["rates"]["over_s"] >= 0.5


def test_without_a_terminal_it_says_what_to_ask_for(start: StartStand) -> None:
    stand = start()
    refused = stand.run("top")
    stand.end()
    assert refused.returncode == 2
    assert "--once" in refused.stderr


def test_without_a_supervisor_it_says_the_same_as_the_status(
    start: StartStand, open_terminal: OpenTerminal
) -> None:
    stand = start()
    stand.end()
    status, once = stand.run("status"), stand.run("top", "--once")
    terminal = open_terminal(stand, "top")
    said = terminal.read_past(r"(mlxsup: .*)\r\n")
    ended = terminal.read_past(r"ended with (\d+), modes (\S+)\r\n")
    assert (once.returncode, once.stderr) == (status.returncode, status.stderr) == (1, f"{said[1]}\n")
    assert (int(ended[1]), ended[2]) == (1, terminal.modes)
