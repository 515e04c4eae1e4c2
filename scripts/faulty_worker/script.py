"""What a request asks of the faulty worker: its prompt is a `Script` in JSON."""

from enum import StrEnum

import msgspec


class FaultKind(StrEnum):
    """What can go wrong. Those marked * leave the process alive and the request going on."""

    ABORT = "abort"
    SEGFAULT = "segfault"
    BUS_ERROR = "bus_error"
    KILL = "kill"
    TERM = "term"
    EXIT_0 = "exit_0"
    EXIT_78 = "exit_78"
    DEFECT = "defect"
    POISONED_CONTEXT = "poisoned_context"
    """The first step fails as a Metal command buffer does, and so does every later one of this process."""

    HANG_WITH_GIL = "hang_with_gil"
    HANG = "hang"
    SPIN = "spin"
    """Uses a whole core in native code, with the interpreter lock released."""

    STOP = "stop"
    GARBAGE = "garbage"
    TORN_FRAME_THEN_DEATH = "torn_frame_then_death"
    TORN_FRAME_THEN_SILENCE = "torn_frame_then_silence"
    HUGE_FRAME = "huge_frame"
    SLOW = "slow"
    """* Prefill at a fifth of the usual speed."""

    LEAK = "leak"
    """* Each token makes the process larger by `Fault.bytes`, resident."""

    GRANDCHILD = "grandchild"
    """* Forks a process that outlives it and keeps stdout and stderr open."""

    IGNORE_TERM = "ignore_term"
    """* SIGTERM has no effect from then on."""

    STDERR_FLOOD = "stderr_flood"
    """* Writes `Fault.bytes` to stderr, as fast as they are taken."""

    BAD_WEIGHTS = "bad_weights"
    """Only in a load, which it refuses."""


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Strikes when the token at `at_token` would be computed, 0 being the first, or any later one.

    `times`: only so often in all workers that count in the same folder, None for always. Two faults count together
    where their `name` is the same.
    """

    kind: FaultKind
    at_token: int = 0
    times: int | None = None
    name: str = ""
    bytes: int = 1 << 20


class Script(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The text depends on `seed` alone. `token_ms` is a token's time, `prefill_ms` that of one of the prompt."""

    seed: int
    token_ms: float = 0.0
    prefill_ms: float = 0.0
    prompt_tokens: int = 1
    fault: Fault | None = None

    def prompt(self) -> str:
        """As a request sends it."""
        return msgspec.json.encode(self).decode()
