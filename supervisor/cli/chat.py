"""`mlxsup chat`: an answer in the terminal, or a conversation."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from mlxsup.protocol.client.exchange import OWN_SUPERVISOR, ConnectionLostError
from mlxsup.protocol.client.sync import Client
from mlxsup.protocol.errors import RpcError
from mlxsup.protocol.generation import (
    FinishReason,
    GenerationResult,
    JsonSchemaFormat,
    NamedSchema,
    Priority,
    StreamDelta,
)
from mlxsup.supervisor.cli.loading import watch_load
from mlxsup.supervisor.cli.setting import Loaded, config_option, read_setting, socket_option


@click.command()
@click.argument("prompt", required=False)
@click.option("-m", "--model", help="Which model; else the first of the configuration.")
@click.option("--system", help="A system message.")
@click.option("--max-tokens", type=click.IntRange(min=1))
@click.option("--temperature", type=click.FloatRange(0, 5))
@click.option("--seed", type=int)
@click.option(
    "--schema",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A JSON Schema for the answer.",
)
@click.option(
    "--priority",
    type=click.Choice([priority.value for priority in Priority]),
    help="Before or behind whom. A conversation in a terminal is interactive, everything else normal.",
)
@click.option("--client", help="Whom to charge for it.")
@click.option(
    "--deadline",
    "deadline_s",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="For each answer; it fails when it takes longer.",
)
@config_option
@socket_option
def chat(
    prompt: str | None,
    model: str | None,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    schema: Path | None,
    priority: str | None,
    client: str | None,
    deadline_s: float | None,
    config_file: Path | None,
    socket_path: Path | None,
) -> None:
    """Ask PROMPT, or converse. `-` reads the prompt from stdin. What a model says to itself before its answer goes to stderr.

    Uses the running supervisor, or one of its own for as long as it takes. Ctrl-C ends an answer, Ctrl-D a
    conversation.
    """
    loaded = read_setting(config_file)
    name = model or next(iter(loaded.config.models))
    if priority is None and prompt is None and sys.stdin.isatty():
        priority = Priority.INTERACTIVE
    params = {
        "model": name,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
        "response_format": None if schema is None else _read_schema(schema),
        "priority": priority,
        "client": client,
        "deadline_ms": None if deadline_s is None else max(1, round(deadline_s * 1000)),
    }
    messages = [{"role": "system", "content": system}] if system else []
    with _client(loaded, config_file, socket_path) as connected:
        watch_load(connected, loaded, "model/load", {"model": name, "forgive": False}, "starting a worker")
        if prompt is not None:
            text = sys.stdin.read() if prompt == "-" else prompt
            if not text.strip():
                raise click.UsageError("the prompt is empty")
            answer = _answer(connected, params, [*messages, {"role": "user", "content": text}])
            if answer.finish_reason is FinishReason.CANCELLED:
                raise KeyboardInterrupt
        else:
            _converse(connected, params, messages)


def _read_schema(file: Path) -> JsonSchemaFormat:
    try:
        schema = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"{file} is not JSON: {error}", param_hint="--schema") from None
    if not isinstance(schema, dict):
        raise click.BadParameter(f"{file} is no JSON object", param_hint="--schema")
    return JsonSchemaFormat(NamedSchema(schema=schema))


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
    shown = _Shown()
    interrupted = False
    try:
        while True:
            try:
                delta = stream.next_delta()
                if delta is None:
                    break
                shown.add(delta)
            except KeyboardInterrupt:
                if interrupted:
                    raise
                interrupted = True
                stream.cancel()
    finally:
        click.echo()
    assert stream.result is not None
    return stream.result


class _Shown:
    """Reasoning, dimmed, ends with an empty line where the answer begins."""

    def __init__(self) -> None:
        self._reasons = False

    def add(self, delta: StreamDelta) -> None:
        if delta.reasoning:
            self._reasons = True
            click.secho(delta.reasoning, nl=False, err=True, dim=True)
        if delta.text:
            if self._reasons:
                self._reasons = False
                click.echo("\n", err=True)
            click.echo(delta.text, nl=False)
