"""What the batch loop needs of an engine."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import msgspec

from mlxsup.protocol.errors import RpcError
from mlxsup.protocol.generation import FinishReason, TokenLogprob, ToolCall
from mlxsup.protocol.self_test import SelfTestResult
from mlxsup.protocol.worker_link import Embed, Generate, Load, Loaded, Tune
from mlxsup.worker.engine.grammar.constraint import Grammar
from mlxsup.worker.engine.prefixes.disk import Found
from mlxsup.worker.engine.vision.sight import Sight

IsWanted = Callable[[], bool]
"""Whether something has come meanwhile that the caller had better look at first."""

ReportLoad = Callable[[str, int, int], None]
"""Called with the phase of a load, and bytes done and to do."""


class Emission(msgspec.Struct, frozen=True):
    """What one step gave to one sequence; `finish` and `cached_tokens` are set on its last emission.

    `logprobs` has one for each token, if they were asked for. With an `error` it ends, and is answered with that.
    `embeddings` come with the end of a request for them: a JSON array of each text.
    """

    id: int
    text: str
    tokens: list[int]
    finish: FinishReason | None = None
    cached_tokens: int = 0
    reasoning: str = ""
    tool_calls: list[ToolCall] = []
    logprobs: list[TokenLogprob] = []
    error: RpcError | None = None
    embeddings: list[bytes] = []


class Prepared(msgspec.Struct, frozen=True):
    """A request made ready beside the MLX thread: its prompt in tokens, without those delivered before, its grammar, what the
    disk had of the prompt's beginning, and the pictures in it.
    """

    prompt_tokens: list[int]
    request: Generate
    grammar: Grammar | None = None
    found: Found | None = None
    sight: Sight | None = None


class PreparedTexts(msgspec.Struct, frozen=True):
    """A request for embeddings made ready: its texts in tokens."""

    texts: list[list[int]]
    request: Embed


class Lease(Protocol):
    """Turns at reading prompts, where others use the same device."""

    def allows(self, tokens: int) -> bool:
        """Whether a chunk of so many tokens may be read now."""
        ...

    def ask(self, tokens: int, urgency: int) -> None:
        """It may not, and is wanted; a step may come meanwhile that reads nothing."""
        ...

    def over(self) -> None:
        """It is read, or no longer wanted."""
        ...


class Engine(Protocol):
    """Everything but `prepare`, `tokenize` and `detokenize` is called by the MLX thread only."""

    @property
    def loaded(self) -> Loaded: ...

    def prepare(self, request: Generate) -> Prepared:
        """Template, tokenise, check against the context. Raises RpcError; touches no MLX."""
        ...

    def submit(self, id: int, prepared: Prepared) -> Emission | None:
        """Take a sequence into the batch; its only emission, if what was delivered before completes it.

        Raises RpcError where something that it names can't be had.
        """
        ...

    def cancel(self, id: int) -> Emission:
        """Drop a sequence and give what it still held back."""
        ...

    def give_way(self, id: int) -> Emission:
        """As `cancel` does with one that is submitted again: what helps then is kept, if there is room."""
        ...

    def forget(self, id: int) -> None:
        """A sequence that was to go on does not; ids that were never kept are forgotten already."""
        ...

    def share(self, lease: Lease) -> None:
        """From now on prompts are read in turns."""
        ...

    def tune(self, order: Tune) -> None:
        """Take other bounds from the next step on."""
        ...

    @property
    def prefill_tokens(self) -> int:
        """How many tokens of prompts the next step will compute."""
        ...

    def step(self, is_wanted: IsWanted) -> list[Emission] | None:
        """Compute one step of the batch. None: it `is_wanted` elsewhere, and goes on where it is with the next call.

        Nothing, if all that is left to compute waits for its turn.
        """
        ...

    def rest(self, is_wanted: IsWanted) -> None:
        """There are no sequences: do what can wait for that, until something `is_wanted`."""
        ...

    def tokenize(self, text: str) -> list[int]: ...

    def detokenize(self, tokens: list[int]) -> str: ...


@runtime_checkable
class Embeds(Protocol):
    """An engine that makes embeddings, too. To all other methods such a request is as a sequence is."""

    def prepare_texts(self, request: Embed) -> PreparedTexts:
        """As `Engine.prepare`."""
        ...

    def submit_texts(self, id: int, prepared: PreparedTexts) -> None:
        """As `Engine.submit`."""
        ...


@runtime_checkable
class TestsItself(Protocol):
    """An engine that finds out which of its features are right for its model."""

    def step_self_test(self, is_wanted: IsWanted) -> SelfTestResult | None:
        """Compute a step of a test, of another one if none has begun; the result of one that is over.

        What it found wrong is switched off by then, for what runs, too.
        """
        ...


LoadEngine = Callable[[Load, ReportLoad], Engine]
"""Loads what the order names. Raises RpcError where the model or the machine can't do it."""
