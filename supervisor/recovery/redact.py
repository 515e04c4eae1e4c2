"""What of a worker's stderr may be kept: never a word of a prompt. Pure.

A prompt can hold anything, also what looks like a stack or an error of the driver. So no line is kept for how it
begins: what is kept of it is only what is known beforehand, numbers too short to be of a card or a telephone where they
can be, and names of files that known packages really have. All else becomes its length.
"""

import builtins
import re
from collections.abc import Callable

from mlxsup.protocol.worker_link import REQUEST_MARK

_CODES = "Timeout|Hang|SubmissionsIgnored|InnocentVictim|OutOfMemory|InvalidResource|PageFault|ImpactingInteractivity"
# What MLX, the driver and the C++ runtimes write, to the letter.
_PHRASES = re.compile(
    r"\[METAL\] Command buffer execution failed"
    r"|Caused GPU (?:Timeout|Hang|Address Fault) Error"
    r"|Ignored \(for causing prior/excessive GPU errors\)|Discarded \(victim of GPU error/recovery\)"
    r"|Insufficient Memory|Invalid Resource|Impacting Interactivity"
    rf"|0{{6}}[0-9a-f]{{2}}:kIOGPUCommandBufferCallbackError(?:{_CODES})\b"
    r"|\[metal::malloc\] Resource limit \(\d{1,9}\) exceeded"
    r"|Attempting to allocate \d+ bytes which is greater than the maximum allowed buffer size of \d+ bytes"
    r"|\[malloc(?:_or_wait)?\] Unable to allocate \d+ bytes|std::(?:bad_alloc|runtime_error)"
    r"|There is no Stream\([cg]pu, \d{1,5}\) in current thread|\[metal::load_device\] No Metal device available"
    r"|\[metal::Device\]"
    r"|\[load_safetensors\]|Perhaps an incomplete download or corrupt file\?"
    r"|-\[_MTLCommandBuffer addCompletedHandler:\]|MTLReportFailure|failed assertion"
    r"|A command encoder is already encoding to this command buffer"
    r"|-\[__NSArray0 objectAtIndex:\]: index 0 beyond bounds for empty array"
    r"|refusing to add duplicate key|CUDA error: out of memory|CUDA error"
    r"|\bcu(?:da|blas|dnn)| failed: (?:out of memory|an illegal memory access was encountered)?| failed with code: \d{1,5}\b"
    r"|libc\+\+abi: terminating due to uncaught exception|terminate called after throwing an instance"
    r"|Traceback \(most recent call last\):|\(most recent call first\):"
    r"|Fatal Python error: (?:Aborted|Segmentation fault|Bus error|Illegal instruction|Floating point exception)"
    r"|(?:Current thread|Thread) 0x"
    r"|mlxsup: signal \d{1,3} (?:raised here|sent by process \d{1,7}\b)"
)
# Counts of bytes are what an error of memory is about: up to a petabyte they are kept.
_LONG_NUMBER = re.compile(r"\d{16,}")
# Code of packages, by what comes behind the folder that they are installed in; never a path of the user's own.
_FRAME = re.compile(
    r"^\s*File \"(?:[^\"]*/)?"
    r"((mlxsup|mlx|mlx_lm|mlx_vlm|transformers|tokenizers|jinja2|numpy|msgspec|threading|queue)(?:/\w+)*\.py)\""
    r", line (\d{1,6})\b"
)
_EXCEPTION = re.compile(r"^(?:(?:jinja2|msgspec|safetensors|mlxsup)\.[\w.]*\.)?(\w+)\b")
_CLASSES = frozenset(
    name for name in dir(builtins) if name.endswith(("Error", "Exception", "Interrupt", "Exit"))
) | {
    "DecodeError",
    "RpcError",
    "SafetensorError",
    "TemplateError",
    "TemplateSyntaxError",
    "UndefinedError",
    "ValidationError",
}


def redact_stderr(lines: tuple[str, ...], is_source_file: Callable[[str], bool]) -> list[str]:
    """A line for each that said something.

    `is_source_file` says of `package/module.py` whether an installed package has it; of others the package alone is kept.
    """
    return [_redact(line, is_source_file) for line in lines if line.strip()]


def _redact(line: str, is_source_file: Callable[[str], bool]) -> str:
    own = line.removeprefix(REQUEST_MARK)
    return (REQUEST_MARK if own != line else "") + _redact_words(own, is_source_file)


def _redact_words(line: str, is_source_file: Callable[[str], bool]) -> str:
    if match := _FRAME.match(line):
        name = match[1] if is_source_file(match[1]) else f"{match[2]}/…"
        return f'File "{name}", line {match[3]}'
    known = [_LONG_NUMBER.sub("…", phrase) for phrase in _PHRASES.findall(line)]
    if (match := _EXCEPTION.match(line)) and match[1] in _CLASSES:
        known = [match[1], *known]
    return " … ".join([*known, f"({len(line)} characters)"])
