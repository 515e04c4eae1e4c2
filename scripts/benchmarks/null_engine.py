"""An engine that computes nothing, for measuring everything around an engine.

A request's prompt is JSON that says what it gives: a text that only depends on its seed, at once, so that whoever
reads it can tell whether it is all there; or that text at a fixed speed; or the moment at which each token was made, at
random intervals, each sequence for itself or all of a batch in steps. A batch is of one kind.
"""

import random
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from mlxsup.protocol.generation import FinishReason
from mlxsup.protocol.worker_link import Generate, Load, Loaded, Tune
from mlxsup.worker.engine.interface import Emission, IsWanted, Lease, Prepared, ReportLoad
from scripts.benchmarks.null_model import load_null_weights
from scripts.benchmarks.timed import Timed, TimedBatch

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

    The text is as that of `Paced`. The sequence that was there first says how long the steps are.
    """

    seed: int
    least_ms: float
    most_ms: float


Order = Flood | Paced | Stepped | Timed


def flood_text(seed: int, tokens: int) -> str:
    """What a `Flood` gives, or a `Timed`."""
    return "".join(_piece(seed, number) for number in range(tokens))


def _order(request: Generate) -> Order:
    order: Order = msgspec.json.decode(request.prompt or "", type=Order)
    return order


def _piece(seed: int, number: int) -> str:
    return _PIECES[(seed + number * _STRIDE) % len(_PIECES)]


class _Sequence(msgspec.Struct):
    make_text: Callable[[int], str]
    max_tokens: int
    tokens: int
    cached_tokens: int


class NullEngine:
    def __init__(self, weights: bytearray | None = None) -> None:
        """`weights` only take memory."""
        self._weights = weights or bytearray()
        self.loaded = Loaded(
            model_type="null",
            context_tokens=_CONTEXT_TOKENS,
            weights_bytes=len(self._weights),
            vocabulary_tokens=_VOCABULARY_TOKENS,
            load_s=0.0,
        )
        self._running: dict[int, _Sequence] = {}
        self._beat: _Beat | None = None
        self._timed = TimedBatch()
        self._is_timed = False

    @property
    def sequences(self) -> int:
        return len(self._running)

    def prepare(self, request: Generate) -> Prepared:
        order = _order(request)
        return Prepared([0] * (order.prompt_tokens if isinstance(order, Timed) else 1), request)

    def submit(self, id: int, prepared: Prepared) -> None:
        if not self._running:
            self._beat = None
        request = prepared.request
        order = _order(request)
        delivered = len(request.delivered_tokens)
        self._is_timed = isinstance(order, Timed)
        turn = 2 * request.urgency + (not request.reads_first)
        cached = self._timed.add(id, order, turn, delivered) if isinstance(order, Timed) else 0
        self._running[id] = _Sequence(self._text_maker(order), request.max_tokens, delivered, cached)

    def _text_maker(self, order: Order) -> Callable[[int], str]:
        match order:
            case Flood(seed=seed) | Timed(seed=seed):
                return lambda number: _piece(seed, number)
            case Paced():
                return _paced(order)
            case Stepped():
                if self._beat is None:
                    self._beat = _Beat(order)
                return self._beat.text

    def cancel(self, id: int) -> Emission:
        self._timed.remove(id)
        return self._end(id)

    def give_way(self, id: int) -> Emission:
        self._timed.remove(id, keeps=True)
        return self._end(id)

    def _end(self, id: int) -> Emission:
        cached = self._running.pop(id).cached_tokens
        return Emission(id, "", [], FinishReason.CANCELLED, cached)

    def rest(self, is_wanted: IsWanted) -> None:
        pass

    def forget(self, id: int) -> None:
        self._timed.forget(id)

    def share(self, lease: Lease) -> None:
        """It reads no prompts."""

    def tune(self, order: Tune) -> None:
        """It computes nothing that could be bounded."""

    @property
    def prefill_tokens(self) -> int:
        return self._timed.prefill_tokens

    def step(self, is_wanted: IsWanted) -> list[Emission] | None:
        if self._is_timed:
            ids = self._timed.step(is_wanted)
            return None if ids is None else [self._emission(id) for id in ids]
        if self._beat is not None:
            self._beat.step()
        return [self._emission(id) for id in tuple(self._running)]

    def _emission(self, id: int) -> Emission:
        """Of the next token."""
        sequence = self._running[id]
        number = sequence.tokens
        sequence.tokens = number + 1
        finish = None
        if sequence.tokens == sequence.max_tokens:
            finish = FinishReason.LENGTH
            del self._running[id]
            self._timed.remove(id)
        token = number % _VOCABULARY_TOKENS
        return Emission(id, sequence.make_text(number), [token], finish, sequence.cached_tokens)

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


def load_null_engine(order: Load, report: ReportLoad) -> NullEngine:
    report("weights", 1, 1)
    return NullEngine(load_null_weights(Path(order.model_path), report))
