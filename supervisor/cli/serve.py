"""`mlxsup start` and `mlxsup stdio`."""

import logging
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import click
import trio

from mlxsup.protocol.descriptors import claim_pipes
from mlxsup.supervisor.application import Setting, serve_socket, serve_stdio
from mlxsup.supervisor.cli.setting import Loaded, config_option, read_setting, socket_option
from mlxsup.supervisor.endpoint.bridge import bridge
from mlxsup.supervisor.stderr_log import log_to_stderr


@click.command()
@config_option
@socket_option
@click.option("-v", "--verbose", is_flag=True, help="Log what workers write to stderr, too.")
def start(config_file: Path | None, socket_path: Path | None, verbose: bool) -> None:
    """Serve on a Unix socket until Ctrl-C, SIGTERM or `mlxsup stop`."""
    loaded = read_setting(config_file)
    with _logging(loaded, logging.DEBUG if verbose else logging.INFO):
        trio.run(serve_socket, _setting(loaded), loaded.socket(socket_path))


@click.command()
@config_option
@socket_option
@click.option("--connect", is_flag=True, help="Be a bridge to the supervisor that already runs.")
def stdio(config_file: Path | None, socket_path: Path | None, connect: bool) -> None:
    """Speak JSON-RPC on stdin and stdout, one JSON text a line, until stdin ends."""
    loaded = read_setting(config_file)
    # Before anything could print: from here on stdout carries the protocol and nothing else.
    sys.stdout.flush()
    pipes = claim_pipes()
    with _logging(loaded, logging.WARNING):
        if connect:
            trio.run(bridge, pipes, loaded.socket(socket_path))
        else:
            trio.run(serve_stdio, _setting(loaded), pipes)


def _setting(loaded: Loaded) -> Setting:
    return Setting(
        config=loaded.config,
        config_folder=loaded.config_folder,
        cache=loaded.locations.cache,
        state=loaded.locations.state,
    )


def _logging(loaded: Loaded, level: int) -> AbstractContextManager[None]:
    server = loaded.config.server
    return log_to_stderr(level, server.log_lines_max, server.log_flush_s)
