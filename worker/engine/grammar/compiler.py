"""Compiles grammars beside everything else, and keeps those that were used last."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

import msgspec
from llguidance import LLMatcher, LLParserLimits

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.worker.engine.grammar.closing import closing
from mlxsup.worker.engine.grammar.schema_terms import refusal
from mlxsup.worker.engine.grammar.sources import Source
from mlxsup.worker.engine.grammar.vocabulary import Vocabulary
from mlxsup.worker.engine.grammar.walk import Bound

KEPT_MAX = 64
KEPT_BYTES_MAX = 16 * 1024 * 1024
# Those that were given up go on to their end; with so many of them no other is begun.
_GIVEN_UP_MAX = 2
# What one mask may cost: about 5 ms of the lexer, 2 ms of the parser, and 100 MB of the lexer's states in all.
_LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=70_000,
    step_max_items=40_000,
    max_lexer_states=50_000,
    max_grammar_size=200_000,
)
# llguidance follows references by calling itself: a long chain of them would end the worker on a usual stack.
_STACK_BYTES = 256 * 1024 * 1024
# A grammar whose first steps take longer would hold up everybody else.
_FIRST_MASKS = 8
_MASK_S_MAX = 0.25


class Compiled(msgspec.Struct, frozen=True, eq=False):
    bound: Bound
    # Of the shortest text that was found.
    tokens_min: int


class Compiler:
    """Any thread; waits for `deadline_s` at most."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        deadline_s: float,
        compile_source: "Callable[[Source, Vocabulary], Compiled] | None" = None,
    ) -> None:
        self._compile_source = compile_source or _compile
        self._vocabulary = vocabulary
        self._deadline_s = deadline_s
        self._kept: OrderedDict[str, Compiled] = OrderedDict()
        self._kept_bytes = 0
        self._given_up = 0
        self._lock = threading.Lock()

    def compile(self, source: Source) -> Compiled:
        """
        Raises:
            RpcError: UNSUPPORTED, INVALID_PARAMS or LIMIT_EXCEEDED, with the parameter's path.
        """
        with self._lock:
            kept = self._kept.get(source.grammar)
            if kept is not None:
                self._kept.move_to_end(source.grammar)
                return kept
            if self._given_up >= _GIVEN_UP_MAX:
                raise _too_complex(
                    source, "others that are too complex are still being compiled; try again later"
                )
        compiled = self._within_deadline(source)
        self._keep(source.grammar, compiled)
        return compiled

    def _within_deadline(self, source: Source) -> Compiled:
        outcome: list[Compiled | Exception] = []
        over = threading.Event()

        def work() -> None:
            try:
                outcome.append(self._compile_source(source, self._vocabulary))
            except Exception as error:  # noqa: BLE001  (it is raised where somebody waits for it)
                outcome.append(error)
            with self._lock:
                over.set()
                if given_up:
                    self._given_up -= 1

        given_up: list[bool] = []
        _start(threading.Thread(target=work, name="grammar", daemon=True))
        over.wait(self._deadline_s)
        with self._lock:
            if not over.is_set():
                given_up.append(True)
                self._given_up += 1
                raise _too_complex(source, f"it was not compiled within {self._deadline_s:g} s")
        (found,) = outcome
        if isinstance(found, Exception):
            raise found
        return found

    def _keep(self, grammar: str, compiled: Compiled) -> None:
        with self._lock:
            if grammar in self._kept or len(grammar) > KEPT_BYTES_MAX:
                return
            self._kept[grammar] = compiled
            self._kept_bytes += len(grammar)
            while len(self._kept) > KEPT_MAX or self._kept_bytes > KEPT_BYTES_MAX:
                oldest, _ = self._kept.popitem(last=False)
                self._kept_bytes -= len(oldest)


def _start(thread: threading.Thread) -> None:
    """On a stack of its own size; what others begin meanwhile may have as much, which costs addresses only."""
    usual = threading.stack_size(_STACK_BYTES)
    try:
        thread.start()
    finally:
        threading.stack_size(usual)


def _compile(source: Source, vocabulary: Vocabulary) -> Compiled:
    matcher = _matcher(source.grammar, vocabulary)
    if matcher.is_error():
        words = matcher.get_error().removeprefix("at ")
        if source.schema is not None:
            raise refusal(words, source.schema)
        raise RpcError(
            ErrorKind.INVALID_PARAMS,
            f"`{source.path}` can't be kept: {_last_line(words)}",
            path=source.path,
        )
    _try_masks(source, matcher, vocabulary)
    shortest = closing(matcher, 0, vocabulary)
    if shortest is None:
        raise _too_complex(source, "no short text was found that it allows")
    return Compiled(
        Bound(vocabulary, matcher, _margin(source, len(shortest), vocabulary), source.path), len(shortest)
    )


def _matcher(grammar: str, vocabulary: Vocabulary) -> LLMatcher:
    return LLMatcher(vocabulary.tokens, grammar, log_level=0, limits=_LIMITS)


def _margin(source: Source, shortest: int, vocabulary: Vocabulary) -> int:
    """By how much one token may take the end further away: what it opens has to be closed, and it may open two at once."""
    longest = shortest if source.schema is None else 0
    for part in source.parts:
        matcher = _matcher(part, vocabulary)
        way = None if matcher.is_error() else closing(matcher, 0, vocabulary)
        # What can't be had for itself, such as a place in another one, counts with what refers to it.
        longest = max(longest, len(way or ()))
    return 3 * longest + 16


def _try_masks(source: Source, matcher: LLMatcher, vocabulary: Vocabulary) -> None:
    """The first of them are the slowest: what they find out is kept for all that follow."""
    ahead = matcher.deep_copy()
    for number in range(_FIRST_MASKS):
        ahead.compute_bitmask()
        began_s = time.monotonic()
        bits = ahead.compute_bitmask()
        if time.monotonic() - began_s > _MASK_S_MAX:
            raise _too_complex(source, "each token of an answer would take too long")
        if ahead.is_error():
            raise _too_complex(source, _last_line(ahead.get_error()))
        token = _some_token(bits, number)
        if token is None or token in vocabulary.end_tokens or not ahead.consume_token(token):
            return


def _some_token(bits: bytes, number: int) -> int | None:
    for at in range(len(bits)):
        byte = bits[(at + 97 * number) % len(bits)]
        if byte:
            return (at + 97 * number) % len(bits) * 8 + (byte & -byte).bit_length() - 1
    return None


def _too_complex(source: Source, why: str) -> RpcError:
    return RpcError(
        ErrorKind.LIMIT_EXCEEDED, f"`{source.path}` is too complex: {why}; simplify it", path=source.path
    )


def _last_line(words: str) -> str:
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    told = next(
        (line for line in lines if line.startswith("error: ")), lines[0] if lines else "no reason given"
    )
    return told.removeprefix("error: ")[:300]
