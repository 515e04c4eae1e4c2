"""Each recorded text and each exit form gives the class that it means, whatever the platform puts around it."""

import signal
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxsup.protocol.exit_codes import ExitCode
from mlxsup.protocol.worker_link import REQUEST_MARK
from mlxsup.supervisor.recovery.classify import Evidence, classify, origin_of_end, signal_name
from mlxsup.supervisor.recovery.signal_origin import Origin
from mlxsup.supervisor.recovery.verdicts import Restart, Verdict

_FAILED = "[METAL] Command buffer execution failed: "
_CODE = "kIOGPUCommandBufferCallbackError"

# What a command buffer says when it fails, with the driver's code.
COMMAND_BUFFER = {
    f"{_FAILED}Caused GPU Timeout Error (00000002:{_CODE}Timeout)": "gpu_timeout",
    f"{_FAILED}Caused GPU Hang Error (00000003:{_CODE}Hang)": "gpu_hang",
    f"{_FAILED}Ignored (for causing prior/excessive GPU errors) (00000004:{_CODE}SubmissionsIgnored)": "gpu_penalty_box",
    f"{_FAILED}Discarded (victim of GPU error/recovery) (00000005:{_CODE}InnocentVictim)": "gpu_victim",
    f"{_FAILED}Insufficient Memory (00000008:{_CODE}OutOfMemory)": "gpu_out_of_memory",
    f"{_FAILED}Invalid Resource (00000009:{_CODE}InvalidResource)": "gpu_invalid_resource",
    f"{_FAILED}Caused GPU Address Fault Error (0000000b:{_CODE}PageFault)": "gpu_page_fault",
    f"{_FAILED}Impacting Interactivity (0000000e:{_CODE}ImpactingInteractivity)": "gpu_interactivity",
    f"{_FAILED}Internal Error (0000000e:Internal Error)": "gpu_error",
}
# The driver's words are the user's language's; its name of the error is not. And either has been seen without the other.
WORDS_ALONE = {text.rpartition(" (")[0]: name for text, name in COMMAND_BUFFER.items()}
NAME_ALONE = {
    f"{_FAILED}… {text[text.rindex('(') :]}": name for text, name in COMMAND_BUFFER.items() if _CODE in text
}
OTHER_ERRORS = {
    "[metal::malloc] Resource limit (499000) exceeded.": "buffer_count",
    "[metal::malloc] Attempting to allocate 46137344000 bytes which is greater than the maximum allowed buffer size of "
    "22613000192 bytes.": "allocation_too_big",
    "[malloc] Unable to allocate 17179869184 bytes.": "allocation_failed",
    "[malloc_or_wait] Unable to allocate 17179869184 bytes.": "allocation_failed",
    "There is no Stream(gpu, 2) in current thread.": "stream_thread",
    "[metal::load_device] No Metal device available": "no_metal",
    "[metal::Device] Unable to build metal library from source": "gpu_error",
    "[load_safetensors] Invalid json header length model.safetensors": "model_file",
    "[load_safetensors] invalid data offsets … Perhaps an incomplete download or corrupt file?": "model_file",
    "Perhaps an incomplete download or corrupt file?": "model_file",
    "CUDA error: out of memory": "gpu_out_of_memory",
    "CUDA error: an illegal memory access was encountered": "gpu_error",
    "cudaMallocManaged failed: out of memory": "gpu_out_of_memory",
    "cudaFreeAsync(buf->data, free_streams_[buf->device]) failed: an illegal memory access was encountered": "gpu_error",
    "cublasLtMatmul(handle_, matmul_desc_) failed with code: 13.": "gpu_error",
}
TEXTS = COMMAND_BUFFER | WORDS_ALONE | NAME_ALONE | OTHER_ERRORS

ABORTS = {
    "-[_MTLCommandBuffer addCompletedHandler:]": "metal_assertion",
    '  Binary file "/System/Library/Frameworks/Metal.framework/Metal", at MTLReportFailure+0x1d0 [0x1a2b3c4d]': "metal_assertion",
    "-[_MTLCommandBuffer addCompletedHandler:]:1011: failed assertion `Completed handler provided after commit call'": "metal_assertion",
    "-[AGXG13XFamilyCommandBuffer computeCommandEncoder]:1: failed assertion 'A command encoder is already encoding to "
    "this command buffer'": "metal_assertion",
    "*** Terminating app due to uncaught exception 'NSRangeException', reason: '*** -[__NSArray0 objectAtIndex:]: index 0 "
    "beyond bounds for empty array'": "no_metal",
    'Critical nanobind error: refusing to add duplicate key "cpu" to enumeration "mlx.core.DeviceType"!': "double_import",
}
STACK = (
    "Fatal Python error: Aborted",
    "",
    "Current thread 0x00000001f (most recent call first):",
    '  File "x.py", line 1 in step',
)

FORMS: dict[str, Callable[[str], tuple[int, tuple[str, ...]]]] = {
    "macOS before 0.32": lambda text: (
        -6,
        (
            f"libc++abi: terminating due to uncaught exception of type std::runtime_error: {text}",
            "Abort trap: 6",
        ),
    ),
    "macOS with a stack": lambda text: (
        -6,
        (f"libc++abi: terminating due to uncaught exception of type std::runtime_error: {text}", *STACK),
    ),
    "Linux": lambda text: (
        -6,
        ("terminate called after throwing an instance of 'std::runtime_error'", f"  what():  {text}", *STACK),
    ),
    "in a shell": lambda text: (
        134,
        ("terminate called after throwing an instance of 'std::runtime_error'", f"  what():  {text}"),
    ),
    "from 0.32 on": lambda text: (
        70,
        (
            "Traceback (most recent call last):",
            '  File "x.py", line 1, in step',
            "    raise ImportError",
            f"RuntimeError: {text}.",
        ),
    ),
    "uncaught": lambda text: (1, ("Traceback (most recent call last):", f"RuntimeError: {text}")),
}


def died(returncode: int, *stderr: str, **seen: Any) -> Verdict:
    return classify(Evidence(returncode=returncode, stderr=stderr, phase="ready", **seen))


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("returncode", [-6, -11, 70])
def test_what_was_written_long_before_or_of_one_request_explains_no_death(returncode: int, text: str) -> None:
    bare = died(returncode)

    assert died(returncode, text, "later", old_lines=1) == bare
    assert died(returncode, f"{REQUEST_MARK}{text}") == bare
    assert died(returncode, "before", text, old_lines=1).name == TEXTS[text]


def sent(number: int, sender_pid: int | None = 1234) -> Origin:
    return Origin(number=number, sender_pid=sender_pid)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("text", "name"), TEXTS.items(), ids=TEXTS.values())
def test_a_recorded_text_gives_its_class_on_every_platform(form: str, text: str, name: str) -> None:
    returncode, stderr = FORMS[form](text)

    assert died(returncode, "a warning of some library", *stderr).name == name


@pytest.mark.parametrize("returncode", [-6, 134])
@pytest.mark.parametrize(("text", "name"), ABORTS.items(), ids=ABORTS.values())
def test_an_assertion_that_aborts_gives_its_class(text: str, name: str, returncode: int) -> None:
    assert died(returncode, text, *STACK).name == name


@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGABRT, "aborted"), (signal.SIGSEGV, "segmentation_fault")]
)
def test_a_stack_alone_says_no_more_than_the_signal(number: signal.Signals, name: str) -> None:
    assert died(-number, *STACK) == died(-number)
    assert died(-number, *STACK).name == name


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (signal.SIGKILL, "killed"),
        (signal.SIGTERM, "terminated"),
        (signal.SIGSEGV, "segmentation_fault"),
        (signal.SIGBUS, "bus_error"),
        (signal.SIGABRT, "aborted"),
        (signal.SIGILL, "illegal_instruction"),
        (signal.SIGTRAP, "trapped"),
        (signal.SIGFPE, "arithmetic_fault"),
        (signal.SIGHUP, "unknown"),
        (1000, "unknown"),
    ],
)
def test_a_signal_without_a_word_gives_its_own_class_also_when_a_shell_reports_it(
    number: int, name: str
) -> None:
    assert died(-number).name == name
    if number < 128:
        assert died(128 + number).name == name


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (ExitCode.CLEAN, "clean_unexpected"),
        (ExitCode.BAD_CONFIGURATION, "bad_configuration"),
        (ExitCode.DEFECT, "defect"),
        (ExitCode.GPU_ERROR, "gpu_error"),
        (ExitCode.ORPHANED, "orphaned"),
        (ExitCode.PROTOCOL_ERROR, "protocol_error"),
        (1, "unknown"),
        (3, "unknown"),
    ],
)
def test_an_exit_status_without_a_word_gives_its_own_class(status: int, name: str) -> None:
    assert died(status).name == name


@pytest.mark.parametrize(
    ("phase", "restart"),
    [
        ("spawning", Restart.NEVER),
        ("loading", Restart.NEVER),
        ("warming", Restart.NEVER),
        ("ready", Restart.BACKOFF),
        ("draining", Restart.BACKOFF),
    ],
)
def test_one_that_does_not_understand_its_supervisor_from_the_beginning_is_not_started_again(
    phase: str, restart: Restart
) -> None:
    evidence = Evidence(returncode=ExitCode.PROTOCOL_ERROR, stderr=(), phase=phase)
    assert classify(evidence).restart is restart


@pytest.mark.parametrize(
    "returncode", [-signal.SIGKILL, -signal.SIGTERM, -signal.SIGBUS, 0, ExitCode.ORPHANED]
)
@pytest.mark.parametrize("text", TEXTS)
def test_a_text_says_nothing_of_an_end_that_the_worker_did_not_bring_about(
    returncode: int, text: str
) -> None:
    assert died(returncode, f"RuntimeError: {text}") == died(returncode)


def test_what_we_did_to_it_comes_before_what_it_wrote() -> None:
    text = next(iter(TEXTS))

    assert died(-6, text, stalled=True).name == "hung"
    assert died(-9, stalled=True, broke_protocol=True).name == "hung"
    assert died(-9, broke_protocol=True).name == "protocol_broken"


FATAL = [
    signal.SIGSEGV,
    signal.SIGBUS,
    signal.SIGABRT,
    signal.SIGILL,
    signal.SIGFPE,
    signal.SIGTRAP,
]


@pytest.mark.parametrize("sender_pid", [1234, 0], ids=["a process", "outside the container"])
@pytest.mark.parametrize("shell", [False, True])
@pytest.mark.parametrize("number", FATAL)
def test_a_crash_that_somebody_sent_is_none(number: signal.Signals, shell: bool, sender_pid: int) -> None:
    returncode = 128 + number if shell else -number
    verdict = died(returncode, *STACK, *ABORTS, origin=sent(number, sender_pid))
    killed = died(-signal.SIGKILL)

    assert (verdict.name, verdict.blames_request) == ("signalled", False)
    assert (verdict.restart, verdict.weight, verdict.resumes_max) == (
        killed.restart,
        killed.weight,
        killed.resumes_max,
    )


@pytest.mark.parametrize("number", FATAL)
def test_a_crash_of_its_own_is_what_it_is_without_a_word_about_it(number: signal.Signals) -> None:
    for texts in ((), STACK, tuple(TEXTS)[:1]):
        assert died(-number, *texts, origin=sent(number, None)) == died(-number, *texts)
        assert died(-number, *texts, origin=None) == died(-number, *texts)


@pytest.mark.parametrize("returncode", [-signal.SIGABRT, -signal.SIGKILL, ExitCode.TERMINATED, 0, 70])
def test_a_signal_that_was_not_its_end_says_nothing(returncode: int) -> None:
    assert died(returncode, origin=sent(signal.SIGSEGV)) == died(returncode)


def test_who_asked_it_to_end_changes_nothing_but_the_report() -> None:
    for returncode in (ExitCode.TERMINATED, -signal.SIGTERM):
        assert died(returncode, origin=sent(signal.SIGTERM)) == died(returncode)
        assert died(returncode).name == "terminated"


def test_what_we_sent_ourselves_is_nobodys_doing() -> None:
    evidence = Evidence(returncode=-signal.SIGTERM, stderr=(), phase="ready", origin=sent(signal.SIGTERM))

    assert origin_of_end(evidence) == sent(signal.SIGTERM)
    assert origin_of_end(msgspec.structs.replace(evidence, stalled=True)) is None
    assert origin_of_end(msgspec.structs.replace(evidence, broke_protocol=True)) is None


def test_a_kill_is_of_the_kernel_where_it_has_counted_one_more() -> None:
    verdicts = {count: died(-signal.SIGKILL, killed_for_memory=count) for count in (True, False, None)}

    assert verdicts[True].name == "killed_out_of_memory"
    assert (verdicts[True].weight, verdicts[True].resumes_max) == (2, 1)
    assert verdicts[False].name == verdicts[None].name == "killed"
    assert verdicts[False].resumes_max is verdicts[None].resumes_max is None
    assert len({verdict.advice for verdict in verdicts.values()}) == 3


@pytest.mark.parametrize("returncode", [-signal.SIGSEGV, -signal.SIGTERM, ExitCode.DEFECT, 0])
def test_only_a_kill_is_of_the_kernel(returncode: int) -> None:
    assert died(returncode, killed_for_memory=True) == died(returncode)


def test_the_last_line_that_says_something_decides() -> None:
    first, second = list(TEXTS)[:2]

    assert died(70, first, second, "at exit").name == TEXTS[second]
    assert died(70, second, first, "at exit").name == TEXTS[first]


@pytest.mark.parametrize(
    "line", ["    except ImportError:", "    raise MemoryError(text)", "# ModuleNotFoundError?"]
)
def test_the_source_lines_of_a_stack_say_nothing(line: str) -> None:
    assert died(69, "Traceback (most recent call last):", line, "KeyError: 3").name == "defect"


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("ModuleNotFoundError: No module named 'mlx_lm'", "import_error"),
        ("ImportError: cannot import name 'x'", "import_error"),
        ("MemoryError", "allocation_failed"),
        ("terminate called after throwing an instance of 'std::bad_alloc'", "allocation_failed"),
    ],
)
def test_pythons_own_errors_are_told_apart(line: str, name: str) -> None:
    assert died(69, line).name == name


def verdicts() -> dict[str, Verdict]:
    texts = [died(70, text) for text in TEXTS] + [died(-6, text) for text in ABORTS]
    ends = [died(-number) for number in range(1, 32)] + [died(status) for status in range(128)]
    special = [
        died(0, stalled=True),
        died(0, broke_protocol=True),
        died(69, "ImportError: x"),
        died(-11, origin=sent(11)),
        died(-9, killed_for_memory=True),
        died(-9, killed_for_memory=False),
    ]
    return {verdict.name: verdict for verdict in (*texts, *ends, *special)}


def test_no_class_has_two_meanings_but_for_what_its_advice_says() -> None:
    restarts = {name: verdict.restart for name, verdict in verdicts().items()}

    assert {name for name, restart in restarts.items() if restart is Restart.NEVER} == {
        "stream_thread",
        "no_metal",
        "double_import",
        "import_error",
        "model_file",
        "bad_configuration",
    }
    assert {name for name, restart in restarts.items() if restart is Restart.AT_ONCE} == {
        "gpu_victim",
        "gpu_penalty_box",
        "buffer_count",
    }


def test_only_what_memory_caused_takes_its_requests_along() -> None:
    assert {name for name, verdict in verdicts().items() if verdict.resumes_max == 0} == {
        "gpu_out_of_memory",
        "allocation_too_big",
        "allocation_failed",
    }


def test_a_request_is_blamed_for_what_it_can_have_caused_and_not_for_what_came_from_outside() -> None:
    assert {name for name, verdict in verdicts().items() if not verdict.blames_request} == {
        "allocation_failed",
        "bad_configuration",
        "buffer_count",
        "double_import",
        "gpu_out_of_memory",
        "gpu_penalty_box",
        "gpu_victim",
        "import_error",
        "killed",
        "killed_out_of_memory",
        "model_file",
        "no_metal",
        "orphaned",
        "protocol_error",
        "signalled",
        "stream_thread",
        "terminated",
    }


def test_faults_of_the_gpu_that_come_from_elsewhere_point_at_the_machine() -> None:
    assert {name for name, verdict in verdicts().items() if verdict.machine} == {
        "gpu_victim",
        "gpu_penalty_box",
    }


def test_a_hang_weighs_twice_and_a_victim_nothing() -> None:
    weights = {name: verdict.weight for name, verdict in verdicts().items()}

    assert weights["hung"] == 2
    assert weights["gpu_victim"] == weights["buffer_count"] == 0
    assert {name for name, weight in weights.items() if weight == 0} == {"gpu_victim", "buffer_count"}


def test_every_class_has_advice() -> None:
    assert all(verdict.advice for verdict in verdicts().values())


@given(st.integers(-2000, 300), st.lists(st.text()).map(tuple))
def test_every_end_has_a_class(returncode: int, stderr: tuple[str, ...]) -> None:
    assert died(returncode, *stderr).name


def test_a_signals_name_is_the_platforms_own() -> None:
    assert signal_name(-signal.SIGBUS) == "SIGBUS"
    assert signal_name(-1000) == "signal 1000"
    assert signal_name(0) is None
    assert signal_name(137) is None


def test_a_process_that_is_stopped_blames_no_request_and_weighs_as_a_kill() -> None:
    stopped = classify(Evidence(returncode=71, stderr=(), phase="ready", stalled=True, stopped=True))

    assert (stopped.name, stopped.weight, stopped.blames_request) == ("stopped", 1, False)
