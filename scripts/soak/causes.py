"""What workers are made to die of, and what the supervisor should make of it. Pure."""

from enum import StrEnum
from signal import Signals

import msgspec


class Cause(StrEnum):
    KILL = "kill"
    ABORT = "abort"
    SEGV = "segv"
    """From outside, or a real one: an array that no memory holds."""

    BUS = "bus"
    TERM = "term"
    EXIT0 = "exit0"
    """The worker exits with status 0, unasked."""

    STOP = "stop"
    """SIGSTOP: it has to be noticed, and ended."""

    METAL = "metal"
    """A command buffer fails, as Metal says it; the worker ends itself."""


class Nature(msgspec.Struct, frozen=True, kw_only=True):
    """`signal` is what is sent from outside, None where only the worker itself can do it.

    `inside`: the worker can do it itself, when it is told to. `blames`: a request in flight may be suspected of it, so
    that two of them on the same lone request quarantine it, by design.
    """

    signal: Signals | None = None
    inside: bool = False
    blames: bool = False
    death_class: str = ""


# What a death is called when it is known that somebody else sent the signal.
SIGNALLED = "signalled"

NATURES: dict[Cause, Nature] = {
    Cause.KILL: Nature(signal=Signals.SIGKILL, death_class="killed"),
    Cause.ABORT: Nature(signal=Signals.SIGABRT, blames=True, death_class="aborted"),
    Cause.SEGV: Nature(signal=Signals.SIGSEGV, inside=True, blames=True, death_class="segmentation_fault"),
    Cause.BUS: Nature(signal=Signals.SIGBUS, blames=True, death_class="bus_error"),
    Cause.TERM: Nature(signal=Signals.SIGTERM, death_class="terminated"),
    Cause.EXIT0: Nature(inside=True, blames=True, death_class="clean_unexpected"),
    Cause.STOP: Nature(signal=Signals.SIGSTOP, death_class="stopped"),
    # The class is that of the words.
    Cause.METAL: Nature(inside=True, blames=True),
}

# Those after which requests go on, by the class that they have: out of memory is none of them.
METAL_WORDS: dict[str, str] = {
    "gpu_victim": "Discarded (victim of GPU error/recovery) (00000005:kIOGPUCommandBufferCallbackErrorInnocentVictim)",
    "gpu_penalty_box": "Ignored (for causing prior/excessive GPU errors) "
    "(00000004:kIOGPUCommandBufferCallbackErrorSubmissionsIgnored)",
    "gpu_interactivity": "Impacting Interactivity (0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)",
    "gpu_timeout": "Caused GPU Timeout Error (00000002:kIOGPUCommandBufferCallbackErrorTimeout)",
    "gpu_hang": "Caused GPU Hang Error (00000003:kIOGPUCommandBufferCallbackErrorHang)",
    "gpu_page_fault": "Caused GPU Address Fault Error (0000000b:kIOGPUCommandBufferCallbackErrorPageFault)",
    "gpu_invalid_resource": "Invalid Resource (00000009:kIOGPUCommandBufferCallbackErrorInvalidResource)",
}


def metal_words(death_class: str) -> str:
    """As MLX puts the driver's words into an exception."""
    return f"[METAL] Command buffer execution failed: {METAL_WORDS[death_class]}."
