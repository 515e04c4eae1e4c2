"""The group of commands, and how a failure looks: one line on stderr, and a status."""

import sys
from importlib.metadata import version

import click

from mlxsup.protocol.client.exchange import ConnectionLostError
from mlxsup.protocol.errors import RpcError
from mlxsup.supervisor.application import OutputLostError
from mlxsup.supervisor.cli.chat import chat
from mlxsup.supervisor.cli.config import config
from mlxsup.supervisor.cli.deaths import deaths
from mlxsup.supervisor.cli.doctor import doctor
from mlxsup.supervisor.cli.loading import load, recycle
from mlxsup.supervisor.cli.models import breaker, list_models, pull_model, unload
from mlxsup.supervisor.cli.self_test import self_test
from mlxsup.supervisor.cli.serve import start, stdio
from mlxsup.supervisor.cli.setting import NOT_CONFIGURED, SettingError
from mlxsup.supervisor.cli.status import status, stop
from mlxsup.supervisor.cli.top import top
from mlxsup.supervisor.endpoint.unix_server import SocketUnusableError
from mlxsup.supervisor.recovery.death_report import DeathBookError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("mlxsup"), "-V", "--version", prog_name="mlxsup")
def commands() -> None:
    """Serving for MLX that does not fall over.

    `mlxsup start` serves on a Unix socket; `mlxsup chat` talks to a model; `mlxsup top` shows what goes on; `mlxsup doctor`
    says what is here.
    """


for command in (
    start,
    stdio,
    status,
    top,
    list_models,
    pull_model,
    load,
    unload,
    recycle,
    self_test,
    breaker,
    deaths,
    chat,
    stop,
    config,
    doctor,
):
    commands.add_command(command)


def run_command() -> None:
    """Exit status: 0 done, 1 failed, 2 wrong usage, 78 configuration that can't be used, 130 interrupted."""
    try:
        commands(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except SettingError as error:
        click.echo(f"mlxsup: {error}", err=True)
        sys.exit(NOT_CONFIGURED)
    except (RpcError, SocketUnusableError, OutputLostError, DeathBookError) as error:
        click.echo(f"mlxsup: {error}", err=True)
        sys.exit(1)
    except ConnectionLostError as error:
        click.echo(f"mlxsup: {error}; is one running? `mlxsup start` starts it", err=True)
        sys.exit(1)
    except click.Abort:
        raise KeyboardInterrupt from None
    except BrokenPipeError:
        # Whoever read our output has seen enough; Python would complain once more at its exit.
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        click.echo(f"mlxsup: cannot go on: {error.strerror}", err=True)
        sys.exit(1)
