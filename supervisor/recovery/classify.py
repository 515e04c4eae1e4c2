"""What a worker's end means. Pure.

Evidence is taken in this order: what we did to it (a stall that was found), who sent the signal that ended it, what it
wrote last, how it exited.
"""

import signal

import msgspec

from mlxsup.protocol.exit_codes import ExitCode
from mlxsup.protocol.worker_link import REQUEST_MARK
from mlxsup.supervisor.recovery import verdicts
from mlxsup.supervisor.recovery.signal_origin import Origin
from mlxsup.supervisor.recovery.verdicts import Restart, Verdict


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """`returncode` is negative for a signal; so many of the first lines of `stderr` as `old_lines` have nothing to do with
    it. `stalled`: the watchdog ended it, and `stopped`: since the kernel held its process; `broke_protocol`: we did, for what it sent.

    `origin` is where the last signal came from that it told of, and `killed_for_memory` whether the kernel ended a process
    for want of memory, where the worker ran, when it died: None where nothing is known.
    """

    returncode: int
    stderr: tuple[str, ...]
    phase: str
    old_lines: int = 0
    stalled: bool = False
    stopped: bool = False
    broke_protocol: bool = False
    origin: Origin | None = None
    killed_for_memory: bool | None = None


# Texts say something only about an end that the worker's own errors can have caused.
_TEXT_STATUSES = frozenset({ExitCode.DEFECT, ExitCode.GPU_ERROR, ExitCode.BAD_CONFIGURATION, 1})
_TEXT_SIGNALS = frozenset({"SIGABRT", "SIGTRAP", "SIGSEGV", "SIGILL"})
_SERVING = frozenset({"ready", "draining"})


def classify(evidence: Evidence) -> Verdict:
    """The class of a death."""
    if evidence.stalled:
        return verdicts.STOPPED if evidence.stopped else verdicts.HUNG
    if evidence.broke_protocol:
        return verdicts.BROKE_PROTOCOL
    returncode = _own_returncode(evidence)
    name = signal_name(returncode)
    origin = origin_of_end(evidence)
    if name is not None and name != "SIGTERM" and origin is not None and origin.from_outside:
        return verdicts.SIGNALLED
    if name == "SIGKILL" and evidence.killed_for_memory is not None:
        return verdicts.KILLED_OUT_OF_MEMORY if evidence.killed_for_memory else verdicts.KILLED_BY_SOMEBODY
    if name in _TEXT_SIGNALS or returncode in _TEXT_STATUSES:
        found = _by_text(evidence.stderr[evidence.old_lines :])
        if found is not None:
            return found
    if name is not None:
        return verdicts.SIGNALS.get(name, verdicts.UNKNOWN)
    verdict = verdicts.STATUSES.get(returncode, verdicts.UNKNOWN)
    if returncode == ExitCode.PROTOCOL_ERROR and evidence.phase not in _SERVING:
        # Two programs that do not understand each other from the beginning never will.
        return msgspec.structs.replace(verdict, restart=Restart.NEVER)
    return verdict


def origin_of_end(evidence: Evidence) -> Origin | None:
    """Where the signal came from that ended it; None where that is not known, or it was not one from outside our hands.

    A worker obeys SIGTERM with an exit status.
    """
    if evidence.stalled or evidence.broke_protocol or evidence.origin is None:
        return None
    returncode = _own_returncode(evidence)
    ended_by = signal.SIGTERM if returncode == ExitCode.TERMINATED else -returncode
    return evidence.origin if evidence.origin.number == ended_by else None


def signal_name(returncode: int) -> str | None:
    """`SIGKILL` for -9; None for an exit status."""
    if returncode >= 0:
        return None
    try:
        return signal.Signals(-returncode).name
    except ValueError:
        return f"signal {-returncode}"


def _own_returncode(evidence: Evidence) -> int:
    """A shell around the worker reports a signal as 128 and its number."""
    return 128 - evidence.returncode if evidence.returncode > 128 else evidence.returncode


def _by_text(lines: tuple[str, ...]) -> Verdict | None:
    """The newest line that says something decides; a traceback's last line comes after all others.

    What is marked tells of one request that failed, and the worker went on.
    """
    for line in reversed(lines):
        if line.startswith(REQUEST_MARK):
            continue
        for pattern, verdict in verdicts.TEXTS:
            if pattern.search(line):
                return verdict
    return None
