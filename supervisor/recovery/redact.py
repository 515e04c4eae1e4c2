"""What of a worker's stderr may be kept: frames of stacks and errors of the system, never a word of a prompt. Pure."""

import re

# An exception's own text can quote what it choked on; its class can't.
_KEPT_WHOLE = re.compile(
    r"^\s*File \"[^\"]+\", line \d+|^Traceback |^Fatal Python error|^(Current )?[Tt]hread 0x|^Extension modules:"
    r"|\[METAL\]|\[metal::|\[malloc|kIOGPUCommandBuffer|libc\+\+abi|terminate called|what\(\):|Assertion|CUDA error"
    r"|^mlxsup: "
)
_EXCEPTION = re.compile(r"^([A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit))\b")
_HOME = re.compile(r"/(?:home|Users)/[^/\s\"]+")


def redact_stderr(lines: tuple[str, ...]) -> list[str]:
    """The lines that are worth keeping, without prompts and without the user's name."""
    kept = []
    for line in lines:
        if _KEPT_WHOLE.search(line):
            kept.append(_HOME.sub("~", line))
        elif match := _EXCEPTION.match(line):
            kept.append(f"{match[1]}: ({len(line) - len(match[1])} characters)")
        elif line.strip():
            kept.append(f"({len(line)} characters)")
    return kept
