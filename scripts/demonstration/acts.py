"""The acts. Each announces itself, does one thing with the running supervisor, and says what came of it."""

import signal
import subprocess
from collections.abc import Awaitable, Callable, Mapping
from statistics import median

import click
import msgspec
import psutil
import trio

from mlxsup.protocol.generation import GenerationResult
from mlxsup.supervisor.cli.loading import show_load
from mlxsup.supervisor.cli.render import ProgressLine, size
from scripts.demonstration.board import Board, printable
from scripts.demonstration.stage import MLXSUP, MODEL, ActFailedError, Stage, announce, say

_INTERRUPT_S = 10.0

_QUESTION = "What is the capital of France?"
_EXPECTED = "Paris"

_STREAM_TOKENS_MAX = 48
_PROMPTS = {
    "rain": "Why does it rain?",
    "bread": "How do I bake bread?",
    "moon": "Tell me about the moon.",
    "chess": "How is chess played?",
    "tea": "Write a short poem about tea.",
    "gold": "Why is gold precious?",
    "cats": "What do cats like?",
    "sleep": "Why do we sleep?",
}

_LONGER_QUESTION = "Why is the sky blue?"
_LONGER_TOKENS_MAX = 64
_KILL_AT_PIECE = 24


async def fetch(environment: Mapping[str, str]) -> None:
    announce("Fetch the model, unless it is here", f"mlxsup pull {MODEL}")
    pulling = await trio.run_process(
        [MLXSUP, "pull", MODEL],
        stdin=subprocess.DEVNULL,
        capture_stdout=True,  # where it is now; stderr, with the bar, goes straight to the terminal
        check=False,
        env=environment,
        deliver_cancel=_interrupt,
        start_new_session=True,
    )
    if pulling.returncode != 0:
        raise ActFailedError(f"cannot go on without the model: `mlxsup pull` ended with {pulling.returncode}")
    say(pulling.stdout.decode().strip())


async def _interrupt(process: trio.Process) -> None:
    # What Ctrl-C does: the pull then ends what it has started itself.
    process.send_signal(signal.SIGINT)
    with trio.move_on_after(_INTERRUPT_S):
        await process.wait()
    process.kill()


async def _load(stage: Stage) -> None:
    announce("Load the model into a worker of its own", f"mlxsup load {MODEL}")
    line = ProgressLine(f"   {MODEL}")
    began_s = trio.current_time()
    try:
        entry = await stage.client.call("model/load", {"model": MODEL}, show_load(line, MODEL))
    finally:
        line.end()
    say(f"process {entry.pid} is {entry.state} after {trio.current_time() - began_s:.1f} s")


async def _ask(stage: Stage) -> None:
    announce("Ask", f'mlxsup chat --temperature 0 "{_QUESTION}"')
    click.echo("   ", nl=False)
    params = {"model": MODEL, "messages": [{"role": "user", "content": _QUESTION}], "temperature": 0}
    async with stage.client.stream("chat", params) as pieces:
        async for piece in pieces:
            click.echo(piece, nl=False)
    click.echo()
    result = _completed(pieces.result)
    if _EXPECTED not in result.text:
        raise ActFailedError(f"the answer has no {_EXPECTED!r} in it")


async def _eight_at_once(stage: Stage) -> None:
    announce("Ask eight questions at once")
    board = Board(list(_PROMPTS))
    results: list[GenerationResult] = []
    began_s = trio.current_time()

    async def follow(line: int, prompt: str) -> None:
        messages = [{"role": "user", "content": prompt}]
        params = {"model": MODEL, "messages": messages, "max_tokens": _STREAM_TOKENS_MAX, "seed": line}
        async with stage.client.stream("chat", params) as pieces:
            first = True
            async for piece in pieces:
                if first:
                    stage.first_token_s.append(trio.current_time() - began_s)
                    first = False
                board.add(line, piece)
        results.append(_completed(pieces.result))
        board.end(line)

    async with board.drawn(), trio.open_nursery() as streams:
        for line, prompt in enumerate(_PROMPTS.values()):
            streams.start_soon(follow, line, prompt)
    tokens = sum(result.usage.completion_tokens for result in results)
    stage.tokens_per_second = tokens / (trio.current_time() - began_s)


async def _tell_what_it_took(stage: Stage) -> None:
    announce("What it took", "mlxsup status")
    stats = await stage.client.call("server/stats")
    entries = (await stage.client.call("model/list")).models
    worker = next(entry.memory_bytes for entry in entries if entry.name == MODEL)
    rows = (
        ("tokens per second, all eight streams", f"{stage.tokens_per_second:.1f}"),
        ("time to first token, median", f"{median(stage.first_token_s):.2f} s"),
        ("time to first token, longest", f"{max(stage.first_token_s):.2f} s"),
        ("memory of the supervisor", size(stats.supervisor.resident_bytes)),
        ("memory of the worker", size(worker)),
    )
    width = max(len(what) for what, _ in rows)
    for what, value in rows:
        say(f"{what.ljust(width)}  {click.style(value.rjust(8), bold=True)}")


async def _kill_in_mid_answer(stage: Stage) -> None:
    (entry,) = (await stage.client.call("model/list")).models
    worker = psutil.Process(entry.pid)
    announce("Kill the worker in the middle of an answer", f"kill -9 {worker.pid}")
    say(click.style("undisturbed, for comparison:", dim=True))
    undisturbed = await _tell(stage, dim=True)
    say(click.style("killed on the way:", dim=True))
    disturbed = await _tell(stage, victim=worker)
    if worker.is_running():
        raise ActFailedError(f"process {worker.pid} was killed and lives")
    if disturbed.resumed != 1:
        raise ActFailedError(f"the answer has gone on {disturbed.resumed} times in another worker, not once")
    if disturbed.text != undisturbed.text:
        raise ActFailedError("the killed worker's answer is not the undisturbed one")
    (entry,) = (await stage.client.call("model/list")).models
    say(f"process {worker.pid} is dead, and {entry.pid} went on after a pause of {disturbed.pause_s:.1f} s")
    say(f"the text is the undisturbed one: all {len(undisturbed.text)} characters, none missing, none twice")
    await _show_report(stage, worker.pid)


class _Told(msgspec.Struct, frozen=True):
    """`pause_s` is the longest time between two of its pieces."""

    text: str
    resumed: int
    pause_s: float


async def _tell(stage: Stage, *, victim: psutil.Process | None = None, dim: bool = False) -> _Told:
    """Stream the longer answer to the terminal. `victim` gets its SIGKILL once the first pieces have come."""
    text, pieces_seen = "", 0
    pause_s, last_s = 0.0, trio.current_time()
    params = {"model": MODEL, "messages": [{"role": "user", "content": _LONGER_QUESTION}], "temperature": 0}
    click.echo("   ", nl=False)
    async with stage.client.stream("chat", {**params, "max_tokens": _LONGER_TOKENS_MAX}) as pieces:
        async for piece in pieces:
            now_s = trio.current_time()
            if pieces_seen:
                pause_s = max(pause_s, now_s - last_s)
            last_s = now_s
            text += piece
            pieces_seen += 1
            click.echo(click.style(printable(piece), dim=dim or None), nl=False)
            if victim is not None and pieces_seen == _KILL_AT_PIECE:
                victim.kill()
                click.echo(click.style(f" [kill -9 {victim.pid}]", fg="red", bold=True), nl=False)
    click.echo()
    result = _completed(pieces.result)
    if text != result.text or result.worker is None:
        raise ActFailedError("the pieces of a stream are not the text of its result")
    return _Told(text, result.worker.resumed, pause_s)


async def _show_report(stage: Stage, pid: int) -> None:
    told = await trio.run_process([MLXSUP, "deaths"], capture_stdout=True, env=stage.environment)
    lines = told.stdout.decode().splitlines()
    if not any(str(pid) in line.split() for line in lines):
        raise ActFailedError("the death report is missing")
    say(click.style("$ mlxsup deaths", dim=True))
    for line in lines:
        say(line)


async def _leave_nothing(stage: Stage) -> None:
    workers = psutil.Process(stage.supervisor.pid).children(recursive=True)
    await stage.client.call("server/shutdown")
    status = await stage.supervisor.wait()
    left = [worker.pid for worker in workers if worker.is_running()]
    if status != 0 or left:
        raise ActFailedError(f"the supervisor ended with status {status}, and left {left or 'nothing'}")
    click.echo(f"\nThe supervisor has ended with status {status}, and its workers before it.")


def _completed(result: GenerationResult | None) -> GenerationResult:
    if result is None:
        raise ActFailedError("a stream ended without a result")
    return result


Act = Callable[[Stage], Awaitable[None]]

# With the supervisor up, from its first request to its end.
ACTS: tuple[Act, ...] = (
    _load,
    _ask,
    _eight_at_once,
    _tell_what_it_took,
    _kill_in_mid_answer,
    _leave_nothing,
)
