"""What a request asks of the faulty worker: its prompt is a `Script` in JSON. Pure."""

from enum import StrEnum

import msgspec


class FaultKind(StrEnum):
    """What goes wrong. After the last five the worker goes on."""

    ABORT = "abort"
    SEGFAULT = "segfault"
    BUS_ERROR = "bus_error"
    SIGNAL = "signal"
    """`Fault.number`, sent to itself."""

    EXIT = "exit"
    """With status `Fault.number`, unasked."""

    DEFECT = "defect"
    """An exception that nothing expects."""

    POISONED_CONTEXT = "poisoned_context"
    """A command buffer fails as Metal's does, and so does everything after it, until another process."""

    HANG = "hang"
    """A deadlock in native code, which no signal interrupts; the interpreter lock is free."""

    HANG_WITH_GIL = "hang_with_gil"
    SPIN = "spin"
    """As `HANG`, and a core is busy with it."""

    SPIN_WITH_GIL = "spin_with_gil"
    STOP = "stop"
    """It sends itself SIGSTOP."""

    GARBAGE = "garbage"
    """What is not JSON, as a frame."""

    TORN_FRAME_THEN_DEATH = "torn_frame_then_death"
    TORN_FRAME_THEN_SILENCE = "torn_frame_then_silence"
    HUGE_FRAME = "huge_frame"
    """One that is longer than the worker protocol allows."""

    BAD_WEIGHTS = "bad_weights"
    """A load that is refused; nothing elsewhere."""

    SLOW = "slow"
    """This request's prompt takes `Fault.number` times as long; nothing outside a request."""

    LEAK = "leak"
    """Of `Fault.number` bytes, resident, with each token from then on."""

    GRANDCHILD = "grandchild"
    """Forks a process that lives on, with all the worker's pipes open."""

    IGNORE_TERM = "ignore_term"
    STDERR_FLOOD = "stderr_flood"
    """Of `Fault.number` bytes."""


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Strikes when the token at `at_token` (0 is the first), or any later one, would be computed.

    `times`: only so often in all workers with the same ledger that have a fault of this `name`; None for always.
    `words` are written to stderr before.
    """

    kind: FaultKind
    at_token: int = 0
    times: int | None = None
    name: str = "fault"
    number: int = 0
    words: str = ""

    def encode(self) -> str:
        """As the worker's command line has it."""
        return msgspec.json.encode(self).decode()


class Script(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What tokens say depends on `seed` alone. `token_ms` is a token's time, `prefill_ms` that of one of the prompt.

    What the first `reasoning_tokens` say is reasoning. One of `call_every_tokens` of the others is a tool call; 0: none is.
    """

    seed: int
    token_ms: float = 0.0
    prefill_ms: float = 0.0
    prompt_tokens: int = 1
    reasoning_tokens: int = 0
    call_every_tokens: int = 0
    fault: Fault | None = None

    def prompt(self) -> str:
        """As a request sends it."""
        return msgspec.json.encode(self).decode()
