"""What the batch loop needs of an engine."""

from collections.abc import Callable
from typing import Protocol

import msgspec

from mlxsup.protocol.generation import FinishReason
from mlxsup.protocol.worker_link import Generate, Load, Loaded, Tune

ReportLoad = Callable[[str, int, int], None]
"""Called with the phase of a load, and bytes done and to do."""


class Emission(msgspec.Struct, frozen=True):
    """What one step gave to one sequence; `finish` is set on its last emission."""

    id: int
    text: str
    tokens: list[int]
    finish: FinishReason | None = None


class Prepared(msgspec.Struct, frozen=True):
    """A request made ready beside the MLX thread: its prompt in tokens, without those delivered before."""

    prompt_tokens: list[int]
    request: Generate


class Engine(Protocol):
    """Everything but `prepare`, `tokenize` and `detokenize` is called by the MLX thread only."""

    @property
    def loaded(self) -> Loaded: ...

    def prepare(self, request: Generate) -> Prepared:
        """Template, tokenise, check against the context. Raises RpcError; touches no MLX."""
        ...

    def submit(self, id: int, prepared: Prepared) -> Emission | None:
        """Take a sequence into the batch; its only emission, if what was delivered before completes it."""
        ...

    def cancel(self, id: int) -> Emission:
        """Drop a sequence and give what it still held back."""
        ...

    def tune(self, order: Tune) -> None:
        """Take other bounds from the next step on."""
        ...

    @property
    def prefill_tokens(self) -> int:
        """How many tokens of prompts the next step will compute."""
        ...

    def step(self) -> list[Emission]:
        """Compute one step of the whole batch."""
        ...

    def tokenize(self, text: str) -> list[int]: ...

    def detokenize(self, tokens: list[int]) -> str: ...


LoadEngine = Callable[[Load, ReportLoad], Engine]
"""Loads what the order names. Raises RpcError where the model or the machine can't do it."""
