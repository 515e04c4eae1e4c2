"""`mlxsup chat`: an answer in the terminal, or a conversation."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from mlxsup.protocol.client.exchange import OWN_SUPERVISOR, ConnectionLostError
from mlxsup.protocol.client.sync import Client
from mlxsup.protocol.errors import RpcError
from mlxsup.protocol.generation import FinishReason, GenerationResult
from mlxsup.supervisor.cli.loading import watch_load
from mlxsup.supervisor.cli.setting import Loaded, config_option, read_setting, socket_option


@click.command()
@click.argument("prompt", required=False)
@click.option("-m", "--model", help="Which model; else the first of the configuration.")
@click.option("--system", help="A system message.")
@click.option("--max-tokens", type=click.IntRange(min=1))
@click.option("--temperature", type=click.FloatRange(0, 5))
@click.option("--seed", type=int)
@config_option
@socket_option
def chat(
    prompt: str | None,
    model: str | None,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    config_file: Path | None,
    socket_path: Path | None,
) -> None:
    """Ask PROMPT, or converse. `-` reads the prompt from stdin.

    Uses the running supervisor, or one of its own for as long as it takes. Ctrl-C ends an answer, Ctrl-D a
    conversation.
    """
    loaded = read_setting(config_file)
    name = model or next(iter(loaded.config.models))
    params = {"model": name, "max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    messages = [{"role": "system", "content": system}] if system else []
    with _client(loaded, config_file, socket_path) as client:
        watch_load(client, loaded, "model/load", {"model": name, "forgive": False}, "starting a worker")
        if prompt is not None:
            text = sys.stdin.read() if prompt == "-" else prompt
            if not text.strip():
                raise click.UsageError("the prompt is empty")
            answer = _answer(client, params, [*messages, {"role": "user", "content": text}])
            if answer.finish_reason is FinishReason.CANCELLED:
                raise KeyboardInterrupt
        else:
            _converse(client, params, messages)


@contextmanager
def _client(loaded: Loaded, config_file: Path | None, socket_path: Path | None) -> Iterator[Client]:
    try:
        client = Client.connect(loaded.socket(socket_path))
    except ConnectionLostError:
        if socket_path is not None:
            raise
        flags = [] if config_file is None else ["--config", str(config_file)]
        click.echo("no supervisor is running: starting one for this chat", err=True)
        client = Client.spawn([*OWN_SUPERVISOR, *flags])
    with client:
        yield client


def _converse(client: Client, params: dict[str, Any], messages: list[dict[str, str]]) -> None:
    click.echo("Ctrl-D ends the conversation, Ctrl-C an answer.", err=True)
    while True:
        try:
            text = input("\n> ")
        except (EOFError, KeyboardInterrupt) as end:
            click.echo(err=True)
            if isinstance(end, KeyboardInterrupt):
                raise
            return
        if not text.strip():
            continue
        asked = [*messages, {"role": "user", "content": text}]
        try:
            answer = _answer(client, params, asked)
        except RpcError as error:
            # The conversation goes on: the next question starts another worker.
            click.echo(f"mlxsup: {error}", err=True)
            continue
        messages = [*asked, {"role": "assistant", "content": answer.text}]


def _answer(client: Client, params: dict[str, Any], messages: list[dict[str, str]]) -> GenerationResult:
    """Print the pieces as they come. A Ctrl-C asks for the end, a second one does not wait for it."""
    stream = client.stream("chat", {**params, "messages": messages})
    interrupted = False
    try:
        while True:
            try:
                piece = next(stream, None)
                if piece is None:
                    break
                click.echo(piece, nl=False)
            except KeyboardInterrupt:
                if interrupted:
                    raise
                interrupted = True
                stream.cancel()
    finally:
        click.echo()
    assert stream.result is not None
    return stream.result
