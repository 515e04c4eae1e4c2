"""The command line: `main` is the console script `mlxsup`."""

import sys

_INTERRUPTED = 130


def main() -> None:
    """Run the command of `sys.argv`; Ctrl-C ends it quietly, also while the commands are being imported."""
    try:
        from mlxsup.supervisor.cli.main import run_command

        run_command()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        sys.exit(_INTERRUPTED)
