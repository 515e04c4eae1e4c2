"""Whether two engines say the same, but for what rounding may decide. Pure."""

import math
from collections.abc import Sequence

import msgspec

# In logits, about eight roundings of one as large as any: a GPU multiplies float32 in fewer bits, too.
_TOLERANCES = {"float32": 0.02, "float16": 0.125, "bfloat16": 1.0}
# By the bits of its KV caches: a rounding may bring a value to the next step.
_TOLERANCES_OF_CACHES = {8: 0.1, 4: 0.5}


class Trace(msgspec.Struct):
    """What was chosen in answer to one prompt, and by how much it was ahead of the next likeliest, in logits."""

    tokens: list[int] = []
    leads: list[float] = []


class Agreement(msgspec.Struct, frozen=True):
    """So many tokens are the same; `why` the first that is not is no rounding, empty: there is none."""

    tokens: int
    why: str = ""


def tolerance(types: Sequence[str], kv_bits: int | None) -> float:
    """Of a model that computes in these types: it rounds as the coarsest of them does."""
    known = [_TOLERANCES[name] for name in types if name in _TOLERANCES]
    of_caches = [] if kv_bits is None else [_TOLERANCES_OF_CACHES[kv_bits]]
    return max(known + of_caches, default=_TOLERANCES["bfloat16"])


def fault(trace: Trace, vocabulary_tokens: int) -> str:
    """What shows that these are no tokens of a model that works; empty: nothing."""
    for token, lead in zip(trace.tokens, trace.leads, strict=True):
        if math.isnan(lead):
            return "its logits are no numbers"
        if token >= vocabulary_tokens:
            return f"it chooses token {token} of a vocabulary of {vocabulary_tokens}"
    return ""


def compare(expected: Sequence[Trace], found: Sequence[Trace], tolerance: float) -> Agreement:
    """Those of the same prompts, in their order. Each is looked at up to the first token that rounding may have decided."""
    same = 0
    for number, (right, other) in enumerate(zip(expected, found, strict=True), 1):
        for place, (token, lead) in enumerate(zip(right.tokens, right.leads, strict=True)):
            if math.isnan(other.leads[place]):
                return Agreement(same, f"the logits of prompt {number} are no numbers at token {place + 1}")
            if other.tokens[place] == token:
                same += 1
                continue
            if lead > tolerance:
                return Agreement(
                    same,
                    f"prompt {number} goes on otherwise at token {place + 1}, where the likeliest was {lead:.2g} ahead",
                )
            break
    return Agreement(same)
