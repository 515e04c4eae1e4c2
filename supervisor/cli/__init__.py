"""The command line: `main` is the console script `mlxsup`."""

from mlxsup.supervisor.cli.main import main

__all__ = ["main"]
