"""An engine that computes nothing, for measuring everything around an engine.

A request's prompt is JSON that says what it gives: a text that only depends on its seed, at once, so that whoever
reads it can tell whether it is all there; or the moment at which each token was made, at random intervals, each
sequence for itself or all of a batch in steps.
"""

import random
import time
from collections.abc import Callable

import msgspec

from mlxsup.protocol.generation import FinishReason
from mlxsup.protocol.worker_link import Generate, Load, Loaded, Tune
from mlxsup.worker.engine.interface import Emission, IsWanted, Prepared, ReportLoad

_CONTEXT_TOKENS = 1 << 24
_VOCABULARY_TOKENS = 49152
# Text of about the length that a token of English has, with what JSON must escape and what is not ASCII.
_PIECES = (
    " the",
    " of",
    "ing",
    ",",
    " and",
    " model",
    "\n",
    ' "',
    "é",
    " supervis",
    "ed",
    ".",
    " in",
    "s",
    " 東",
    "\t",
)
_STRIDE = 7


class Flood(msgspec.Struct, frozen=True, tag=True):
    """Tokens as fast as they are taken."""

    seed: int


class Paced(msgspec.Struct, frozen=True, tag=True):
    """One token after a time between `least_ms` and `most_ms`, with the monotonic clock's nanoseconds as text."""

    seed: int
    least_ms: float
    most_ms: float


class Stepped(msgspec.Struct, frozen=True, tag=True):
    """A token in each step of the batch, which takes between `least_ms` and `most_ms` however many are in it.

    The text is as that of `Paced`. All sequences of one batch are to be of this kind; the one that was there first says
    how long the steps are.
    """

    seed: int
    least_ms: float
    most_ms: float


def flood_text(seed: int, tokens: int) -> str:
    """What a `Flood` gives."""
    return "".join(_piece(seed, number) for number in range(tokens))


def _piece(seed: int, number: int) -> str:
    return _PIECES[(seed + number * _STRIDE) % len(_PIECES)]


class _Sequence(msgspec.Struct):
    make_text: Callable[[int], str]
    max_tokens: int
    tokens: int = 0


class NullEngine:
    def __init__(self) -> None:
        self.loaded = Loaded(
            model_type="null",
            context_tokens=_CONTEXT_TOKENS,
            weights_bytes=0,
            vocabulary_tokens=_VOCABULARY_TOKENS,
            load_s=0.0,
        )
        self._running: dict[int, _Sequence] = {}
        self._beat: _Beat | None = None

    @property
    def sequences(self) -> int:
        return len(self._running)

    def prepare(self, request: Generate) -> Prepared:
        return Prepared([0], request)

    def submit(self, id: int, prepared: Prepared) -> None:
        if not self._running:
            self._beat = None
        order = msgspec.json.decode(prepared.request.prompt or "", type=Flood | Paced | Stepped)
        self._running[id] = _Sequence(self._text_maker(order), prepared.request.max_tokens)

    def _text_maker(self, order: Flood | Paced | Stepped) -> Callable[[int], str]:
        match order:
            case Flood(seed=seed):
                return lambda number: _piece(seed, number)
            case Paced():
                return _paced(order)
            case Stepped():
                if self._beat is None:
                    self._beat = _Beat(order)
                return self._beat.text

    def cancel(self, id: int) -> Emission:
        del self._running[id]
        return Emission(id, "", [], FinishReason.CANCELLED)

    give_way = cancel

    def forget(self, id: int) -> None:
        """Nothing is kept."""

    def tune(self, order: Tune) -> None:
        """It computes nothing that could be bounded."""

    @property
    def prefill_tokens(self) -> int:
        return 0

    def step(self, _: IsWanted) -> list[Emission]:
        drafts = []
        for id, sequence in list(self._running.items()):
            number = sequence.tokens
            sequence.tokens = number + 1
            finish = None
            if sequence.tokens == sequence.max_tokens:
                finish = FinishReason.LENGTH
                del self._running[id]
            drafts.append((id, sequence.make_text, number, [number % _VOCABULARY_TOKENS], finish))
        # The moments in the texts are to be those at which the step returns.
        if self._beat is not None:
            self._beat.step()
        return [
            Emission(id, make_text(number), tokens, finish)
            for id, make_text, number, tokens, finish in drafts
        ]

    def tokenize(self, text: str) -> list[int]:
        return list(text.encode())

    def detokenize(self, tokens: list[int]) -> str:
        return bytes(tokens).decode(errors="replace")


class _Beat:
    """The steps of a batch of `Stepped`."""

    def __init__(self, order: Stepped) -> None:
        self._order = order
        self._chance = random.Random(order.seed)
        self._text = ""

    def step(self) -> None:
        time.sleep(self._chance.uniform(self._order.least_ms, self._order.most_ms) / 1000)
        self._text = f"{time.monotonic_ns()} "

    def text(self, _: int) -> str:
        return self._text


def _paced(order: Paced) -> Callable[[int], str]:
    chance = random.Random(order.seed)

    def make_text(_: int) -> str:
        time.sleep(chance.uniform(order.least_ms, order.most_ms) / 1000)
        # The last thing before the step returns, where the sequence is alone.
        return f"{time.monotonic_ns()} "

    return make_text


def load_null_engine(_: Load, report: ReportLoad) -> NullEngine:
    report("weights", 1, 1)
    return NullEngine()
