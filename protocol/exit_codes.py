"""How a worker ends on its own, and what that tells the supervisor."""

from enum import IntEnum


class ExitCode(IntEnum):
    """Statuses that a worker chooses; every other one, and every signal, was not its choice."""

    CLEAN = 0
    """Told to end, or its supervisor closed the pipe."""

    BAD_CONFIGURATION = 64
    """The model, its files or the machine can't do it: another try would end the same."""

    DEFECT = 69
    """An exception that nothing expected; the traceback is on stderr."""

    GPU_ERROR = 70
    """A Metal or CUDA error was seen: what is in GPU memory since then is void."""

    TERMINATED = 71
    """SIGTERM, obeyed between two steps."""

    ORPHANED = 75
    """The supervisor is gone."""

    PROTOCOL_ERROR = 78
    """The supervisor sent what is not the worker protocol."""
