"""Of a prompt nothing survives, whatever it looks like; of an error of MLX's the part that names it does."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlxsup.protocol.worker_link import REQUEST_MARK
from mlxsup.supervisor.recovery.redact import _CLASSES, redact_stderr
from tests.unit.recovery.test_classify import ABORTS, FORMS, TEXTS, died

SECRET = "xylophone"
CARD = "4111111111111111"
FILES = {"mlx_lm/generate.py", "mlxsup/worker/batch_loop.py", "jinja2/runtime.py", "threading.py"}


def redact(*lines: str) -> list[str]:
    return redact_stderr(lines, FILES.__contains__)


# Where a word of a prompt can turn up on stderr.
AROUND = [
    "{}",
    "  {}  ",
    "ValueError: {}",
    "jinja2.exceptions.TemplateError: {}",
    "{}Error: no",
    "my.{}.ValueError: no",
    "KeyError: '{}'",
    "RuntimeError: [METAL] Command buffer execution failed: {}",
    "RuntimeError: [METAL] {}",
    "[metal::{}] Resource limit (499000) exceeded.",
    "[metal::malloc] {} Resource limit (499000) exceeded.",
    "CUDA error: {}",
    "  what():  {}",
    "libc++abi: terminating due to uncaught exception of type {}: {}",
    "Assertion {}: failed assertion '{}'",
    "Fatal Python error: {}",
    "Fatal Python error: Aborted {}",
    "Traceback {}",
    "Traceback (most recent call last): {}",
    "Thread 0x{} (most recent call first):",
    "Extension modules: {} (total: 1)",
    "mlxsup: {}",
    "mlxsup: signal 11 sent by process 1234 ({})",
    "mlxsup: signal {} raised here (0123456789abcdef)",
    "cuda{} failed: out of memory",
    "cudaMalloc({}) failed: {}",
    '  File "/Users/{}/notes.py", line 3, in {}',
    '  File "/home/u/{}.py", line 3 in step',
    '  File "/x/site-packages/mlx_lm/generate.py", line 3, in {}',
    '  File "/x/{}/mlx_lm/generate.py", line 3 in step',
    '  File "mlx_lm/generate.py {}", line 3',
    '  File "/mlx/{}/my_name.py", line 3, in step',
    '  File "/x/site-packages/mlx_lm/{}.py", line 3, in step',
    '    raise ValueError("{}")',
    "kIOGPUCommandBufferCallbackError{}",
    "(00000002:kIOGPUCommandBufferCallbackError{})",
    "There is no Stream({}, 0) in current thread.",
    "{} exceeded\rValueError",
]


@pytest.mark.parametrize("around", AROUND)
def test_no_word_of_a_prompt_survives_wherever_it_stands(around: str) -> None:
    (kept,) = redact(around.replace("{}", SECRET))

    assert SECRET not in kept.lower()


@pytest.mark.parametrize(
    "around",
    [
        *AROUND,
        '  File "/x/site-packages/mlx_lm/generate.py", line {}, in step',
        "Thread 0x{} (most recent call first):",
        "Current thread 0x{} (most recent call first):",
        "[metal::malloc] Resource limit ({}) exceeded.",
        "Attempting to allocate {} bytes which is greater than the maximum allowed buffer size of {} bytes",
        "[malloc] Unable to allocate {} bytes",
        "There is no Stream(gpu, {}) in current thread.",
        "cudaMalloc failed with code: {}",
        "mlxsup: signal 11 sent by process {} (0123456789abcdef)",
        "{}:kIOGPUCommandBufferCallbackErrorHang",
    ],
)
def test_no_number_of_a_card_survives_where_a_number_is_expected(around: str) -> None:
    (kept,) = redact(around.replace("{}", CARD))

    assert CARD[:8] not in kept


VOCABULARY: list[str] = [
    *_CLASSES,
    *TEXTS,
    *AROUND,
    *(line for form in FORMS.values() for line in form("")[1]),
    "characters",
]
WORDS = st.text(st.characters(categories=["L", "N"]), min_size=6, max_size=20).filter(
    # A word that is one of ours, or of digits alone, says nothing of a prompt.
    lambda word: not word.isdigit() and not any(word.lower() in known.lower() for known in VOCABULARY)
)


@given(st.lists(WORDS, min_size=1, max_size=4), st.lists(st.sampled_from(AROUND), min_size=1, max_size=4))
@example(["MemoryErrors"], ["{}"])
def test_no_prompt_of_any_words_survives_in_any_of_them(words: list[str], arounds: list[str]) -> None:
    prompt = " ".join(words)
    kept = "\n".join(redact(*(around.replace("{}", prompt) for around in arounds)))

    for word in words:
        assert word not in re.split(r"\W+", kept)


@given(st.lists(st.text()))
def test_each_line_that_says_something_leaves_one(lines: list[str]) -> None:
    assert len(redact(*lines)) == len([line for line in lines if line.strip()])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("text", TEXTS)
def test_what_was_kept_of_an_error_still_gives_its_class(form: str, text: str) -> None:
    returncode, stderr = FORMS[form](text)
    kept = redact(*stderr)

    assert died(returncode, *kept).name == TEXTS[text]


@pytest.mark.parametrize("text", [*TEXTS, *ABORTS])
def test_an_error_of_mlx_keeps_the_words_that_name_it(text: str) -> None:
    (kept,) = redact(f"RuntimeError: {text}")

    assert kept.startswith("RuntimeError … ")
    assert kept.count(" … ") >= 2


@pytest.mark.parametrize("said", ["raised here", "sent by process 1234"])
def test_who_sent_a_signal_is_kept_without_the_key_to_say_so(said: str) -> None:
    (kept,) = redact(f"mlxsup: signal 11 {said} (0123456789abcdef)")

    assert kept.startswith(f"mlxsup: signal 11 {said} … ")
    assert "0123456789abcdef" not in kept


def test_the_mark_of_a_requests_own_failure_is_kept_and_hides_no_word() -> None:
    frame = '  File "/x/site-packages/jinja2/runtime.py", line 12, in call'
    kept = redact(f"{REQUEST_MARK}{frame}", f"{REQUEST_MARK}{REQUEST_MARK}{SECRET}")

    assert kept[0].startswith(f"{REQUEST_MARK}File ")
    assert kept[1].startswith(REQUEST_MARK)
    assert SECRET not in kept[1]


def test_of_a_file_that_no_package_has_the_package_alone_is_kept() -> None:
    assert redact(f'  File "/x/mlx_lm/{SECRET}.py", line 12, in step') == ['File "mlx_lm/…", line 12']


def test_a_stack_keeps_where_it_was_and_loses_whose_it_was() -> None:
    kept = redact(
        "Current thread 0x00007f12 (most recent call first):",
        '  File "/Users/ann/.venv/lib/python3.13/site-packages/mlx_lm/generate.py", line 12 in step',
        '  File "/Users/ann/mlxsup/worker/batch_loop.py", line 70, in run',
        "",
        "MemoryError",
    )

    assert kept[0].startswith("Current thread 0x … (most recent call first):")
    assert kept[1:3] == ['File "mlx_lm/generate.py", line 12', 'File "mlxsup/worker/batch_loop.py", line 70']
    assert kept[3] == "MemoryError … (11 characters)"
    assert "ann" not in "".join(kept)
