"""What a worker's end means, from its exit status. Pure."""

import signal

from mlxsup.protocol.errors import Death
from mlxsup.protocol.exit_codes import ExitCode

_BY_STATUS: dict[int, str] = {
    ExitCode.CLEAN: "clean_unexpected",
    ExitCode.BAD_CONFIGURATION: "bad_configuration",
    ExitCode.DEFECT: "defect",
    ExitCode.GPU_ERROR: "gpu_error",
    ExitCode.ORPHANED: "orphaned",
    ExitCode.PROTOCOL_ERROR: "protocol_error",
}

_BY_SIGNAL = {
    "SIGKILL": "killed",
    "SIGTERM": "terminated",
    "SIGABRT": "aborted",
    "SIGSEGV": "segmentation_fault",
    "SIGBUS": "bus_error",
    "SIGILL": "illegal_instruction",
}


def explain_death(returncode: int, phase: str) -> Death:
    """`returncode` as `subprocess` gives it: negative for a signal. `phase` is what the worker was doing."""
    if returncode < 0:
        name = _signal_name(-returncode)
        return Death(death_class=_BY_SIGNAL.get(name, "signalled"), phase=phase, signal=name)
    return Death(death_class=_BY_STATUS.get(returncode, "exited"), phase=phase, exit_status=returncode)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def describe_death(death: Death) -> str:
    how = f"signal {death.signal}" if death.signal else f"exit status {death.exit_status}"
    return f"{death.death_class} ({how}) while {death.phase}"
