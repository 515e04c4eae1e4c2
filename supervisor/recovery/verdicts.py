"""The classes of deaths, and what each asks for: one table. Pure.

Texts are matched on the part that MLX or the driver wrote, never on what the C++ runtime of a platform puts around it.
A kernel panic is not among them: it leaves nobody to read what it said.
"""

import re
from enum import StrEnum

import msgspec

from mlxsup.protocol.exit_codes import ExitCode


class Restart(StrEnum):
    """When another worker may be started."""

    AT_ONCE = "at_once"
    """The worker was not to blame."""

    BACKOFF = "backoff"
    """By the restart policy: the first time at once, then later and later."""

    NEVER = "never"
    """Another one would end the same; somebody has to change something."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """A class of deaths, and what is done about it.

    `weight` is what it counts in the restart budget and the breaker, 0 for no fault of the worker; its requests go on in
    another worker; those that have gone on `resumes_max` times before (None: there is no such bound) do so alone, and fail
    if they were alone already; `machine` marks faults that point beyond this worker; `blames_request` those that a request in flight can have caused
    by what it asked for.
    """

    name: str
    restart: Restart
    weight: int
    advice: str
    resumes_max: int | None = None
    machine: bool = False
    blames_request: bool = False


def _verdict(
    name: str,
    restart: Restart,
    weight: int,
    advice: str,
    *,
    resumes_max: int | None = None,
    machine: bool = False,
    blames_request: bool = False,
) -> Verdict:
    return Verdict(
        name=name,
        restart=restart,
        weight=weight,
        advice=advice,
        resumes_max=resumes_max,
        machine=machine,
        blames_request=blames_request,
    )


# As MLX writes it: the whole call, and then what CUDA says of it.
_CUDA_CALL = r"\bcu(?:da|blas|dnn)\w*\b.*"
_SMALLER = "use a smaller model or quantisation, or lower context_tokens_max and batch_sequences_max"
_REPORT = "if it comes back, report it to MLX with the death report"

STOPPED = _verdict("stopped", Restart.BACKOFF, 1, "somebody sent it SIGSTOP, or a debugger holds it")
HUNG = _verdict(
    "hung", Restart.BACKOFF, 2, "the stacks in the death report show where it hung", blames_request=True
)
BROKE_PROTOCOL = _verdict(
    "protocol_broken",
    Restart.BACKOFF,
    1,
    "something wrote into its protocol, or two versions of mlxsup are installed",
    blames_request=True,
)
SIGNALLED = _verdict(
    "signalled", Restart.BACKOFF, 1, "the worker did nothing wrong: see to what sends it signals"
)
# The kernel takes the largest, whoever asked for the last page: so its requests get another try, but not two, since a
# long context may be what made it the largest.
KILLED_OUT_OF_MEMORY = _verdict(
    "killed_out_of_memory",
    Restart.BACKOFF,
    2,
    f"the kernel ended it for want of memory: {_SMALLER}",
    resumes_max=1,
)
KILLED_BY_SOMEBODY = _verdict(
    "killed",
    Restart.BACKOFF,
    1,
    "somebody sent it SIGKILL, or a program that guards memory did: the kernel itself has not run out of it",
)

# What the worker wrote last. The driver's own name of the error stands in brackets at the end of its text.
TEXTS: tuple[tuple[re.Pattern[str], Verdict], ...] = tuple(
    (re.compile(pattern), verdict)
    for pattern, verdict in (
        (
            r"ErrorInnocentVictim|Discarded \(victim of GPU error",
            _verdict(
                "gpu_victim", Restart.AT_ONCE, 0, "another program's GPU fault took it down", machine=True
            ),
        ),
        (
            r"ErrorSubmissionsIgnored|Ignored \(for causing prior/excessive GPU errors",
            _verdict(
                "gpu_penalty_box", Restart.AT_ONCE, 1, "end other programs that use the GPU", machine=True
            ),
        ),
        (
            r"ErrorImpactingInteractivity|Impacting Interactivity",
            _verdict(
                "gpu_interactivity",
                Restart.BACKOFF,
                1,
                "lower prefill_chunk_tokens, or let the display sleep",
                blames_request=True,
            ),
        ),
        (
            r"ErrorTimeout|Caused GPU Timeout Error",
            _verdict("gpu_timeout", Restart.BACKOFF, 1, "lower prefill_chunk_tokens", blames_request=True),
        ),
        (
            r"ErrorHang|Caused GPU Hang Error",
            _verdict("gpu_hang", Restart.BACKOFF, 1, "lower prefill_chunk_tokens", blames_request=True),
        ),
        (
            rf"ErrorOutOfMemory|Insufficient Memory|CUDA error: out of memory|{_CUDA_CALL} failed: out of memory",
            _verdict("gpu_out_of_memory", Restart.BACKOFF, 2, _SMALLER, resumes_max=0),
        ),
        (
            r"\[metal::malloc\] Resource limit",
            _verdict("buffer_count", Restart.AT_ONCE, 0, "set recycle_requests: buffers leak slowly"),
        ),
        (
            r"Attempting to allocate \d+ bytes which is greater than",
            _verdict("allocation_too_big", Restart.BACKOFF, 1, _SMALLER, resumes_max=0, blames_request=True),
        ),
        (
            r"\[malloc(?:_or_wait)?\] Unable to allocate|std::bad_alloc|^MemoryError\b",
            _verdict("allocation_failed", Restart.BACKOFF, 2, _SMALLER, resumes_max=0),
        ),
        (
            r"ErrorPageFault|Caused GPU Address Fault",
            _verdict("gpu_page_fault", Restart.BACKOFF, 1, _REPORT, blames_request=True),
        ),
        (
            r"ErrorInvalidResource|\bInvalid Resource\b",
            _verdict("gpu_invalid_resource", Restart.BACKOFF, 1, _REPORT, blames_request=True),
        ),
        (
            r"There is no Stream\(",
            _verdict("stream_thread", Restart.NEVER, 1, "MLX was used from a second thread: " + _REPORT),
        ),
        (
            r"No Metal device available|__NSArray0 objectAtIndex",
            _verdict(
                "no_metal", Restart.NEVER, 1, "run it where a Metal device is visible: not in this sandbox"
            ),
        ),
        (
            r"refusing to add duplicate key",
            _verdict(
                "double_import", Restart.NEVER, 1, "two copies of MLX are installed: make a clean environment"
            ),
        ),
        (
            r"_MTLCommandBuffer|MTLReportFailure|failed assertion",
            _verdict("metal_assertion", Restart.BACKOFF, 1, _REPORT, blames_request=True),
        ),
        (
            r"^(?:ModuleNotFoundError|ImportError)\b",
            _verdict(
                "import_error", Restart.NEVER, 1, "a package is missing or broken: `mlxsup doctor` looks"
            ),
        ),
        (
            r"\[load_safetensors\]|incomplete download or corrupt file",
            _verdict("model_file", Restart.NEVER, 1, "the weights are damaged: pull the model again"),
        ),
        (
            rf"\[METAL\]|\[metal::|CUDA error|{_CUDA_CALL} failed(?::| with code:)",
            _verdict("gpu_error", Restart.BACKOFF, 1, _REPORT, blames_request=True),
        ),
    )
)

STATUSES: dict[int, Verdict] = {
    ExitCode.CLEAN: _verdict(
        "clean_unexpected", Restart.BACKOFF, 1, "something in the worker called exit", blames_request=True
    ),
    ExitCode.BAD_CONFIGURATION: _verdict(
        "bad_configuration", Restart.NEVER, 1, "see the reason of the failed load"
    ),
    ExitCode.DEFECT: _verdict(
        "defect", Restart.BACKOFF, 1, "its traceback is in the death report", blames_request=True
    ),
    ExitCode.GPU_ERROR: _verdict("gpu_error", Restart.BACKOFF, 1, _REPORT, blames_request=True),
    ExitCode.TERMINATED: _verdict("terminated", Restart.BACKOFF, 1, "somebody sent it SIGTERM"),
    ExitCode.ORPHANED: _verdict(
        "orphaned", Restart.BACKOFF, 1, "it lost its pipe although the supervisor lives"
    ),
    ExitCode.PROTOCOL_ERROR: _verdict(
        "protocol_error", Restart.BACKOFF, 1, "are two versions of mlxsup installed?"
    ),
}

SIGNALS: dict[str, Verdict] = {
    "SIGKILL": _verdict(
        "killed",
        Restart.BACKOFF,
        1,
        "the system ends what takes too much memory without a word; or somebody did",
    ),
    "SIGTERM": _verdict("terminated", Restart.BACKOFF, 1, "somebody sent it SIGTERM"),
    "SIGSEGV": _verdict("segmentation_fault", Restart.BACKOFF, 1, _REPORT, blames_request=True),
    "SIGBUS": _verdict(
        "bus_error",
        Restart.BACKOFF,
        1,
        "were the weights changed or unmounted while in use?",
        blames_request=True,
    ),
    "SIGABRT": _verdict("aborted", Restart.BACKOFF, 1, _REPORT, blames_request=True),
    "SIGILL": _verdict(
        "illegal_instruction",
        Restart.BACKOFF,
        1,
        "is this build of MLX for this processor?",
        blames_request=True,
    ),
    "SIGFPE": _verdict("arithmetic_fault", Restart.BACKOFF, 1, _REPORT, blames_request=True),
    "SIGTRAP": _verdict("trapped", Restart.BACKOFF, 1, _REPORT, blames_request=True),
}

UNKNOWN = _verdict("unknown", Restart.BACKOFF, 1, _REPORT, blames_request=True)
