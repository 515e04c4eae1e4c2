"""What a self-test of a model finds: whether each feature of the engine gives the text that each prompt has without any."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Feature = Literal["batch", "prefix_cache", "speculation"]
"""Several sequences in one pass; what was kept of a prompt's beginning; tokens that are guessed, or known, fed several at once."""

FEATURES: tuple[Feature, ...] = ("batch", "prefix_cache", "speculation")

Outcome = Literal["ok", "switched_off", "failed", "not_applicable"]

# A confused worker may say anything.
_WHY_CHARS_MAX = 1000
_CHECKS_MAX = 16
_Count = Annotated[int, Meta(ge=0, le=2**53)]
_Seconds = Annotated[float, Meta(ge=0.0, le=2.0**53)]


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """Of one feature, or of the `model` with none of them, which alone may have `failed`. So many `tokens` were compared, in
    `seconds`; `why` says why it is not ok.
    """

    feature: Literal["model", "batch", "prefix_cache", "speculation"]
    outcome: Outcome
    tokens: _Count = 0
    seconds: _Seconds = 0.0
    why: Annotated[str, Meta(max_length=_WHY_CHARS_MAX)] = ""


class SelfTestResult(msgspec.Struct, frozen=True, kw_only=True):
    """What is switched off stays so, and is not checked again, until the model is loaded anew by hand."""

    checks: Annotated[list[Check], Meta(max_length=_CHECKS_MAX)]
    seconds: _Seconds

    @property
    def passed(self) -> bool:
        return all(check.outcome in ("ok", "not_applicable") for check in self.checks)

    @property
    def switched_off(self) -> list[Feature]:
        off = {check.feature for check in self.checks if check.outcome == "switched_off"}
        return [feature for feature in FEATURES if feature in off]
