"""Compiling beside everything else: bounded in time, and kept for whoever asks again."""

import threading

import pytest

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import RegexFormat
from mlxsup.worker.engine.grammar.compiler import Compiled, Compiler
from mlxsup.worker.engine.grammar.sources import Source, of_format
from mlxsup.worker.engine.grammar.vocabulary import Vocabulary
from tests.unit.grammar.tokens import vocabulary

LONG_S = 30.0


def source(pattern: str) -> Source:
    found = of_format(RegexFormat(pattern=pattern))
    assert found is not None
    return found


class Stuck:
    """Compiles nothing before it is let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.ended = threading.Semaphore(0)

    def __call__(self, _source: Source, _vocabulary: Vocabulary) -> Compiled:
        assert self.let_go.wait(LONG_S)
        self.ended.release()
        raise AssertionError("nobody waits for it")


def test_one_that_takes_too_long_is_refused_and_many_such_let_no_more_begin_until_they_are_over() -> None:
    stuck = Stuck()
    compiler = Compiler(vocabulary(), 0.01, stuck)
    for pattern in ("a", "b"):
        with pytest.raises(RpcError, match=r"was not compiled within 0\.01 s") as raised:
            compiler.compile(source(pattern))
        assert raised.value.kind is ErrorKind.LIMIT_EXCEEDED
    with pytest.raises(RpcError, match="others that are too complex"):
        compiler.compile(source("c"))
    stuck.let_go.set()
    assert stuck.ended.acquire(timeout=LONG_S)
    assert stuck.ended.acquire(timeout=LONG_S)


def test_what_was_compiled_once_is_not_compiled_again() -> None:
    compiler = Compiler(vocabulary(), LONG_S)

    assert compiler.compile(source("ab+")) is compiler.compile(source("ab+"))


def test_what_an_earlier_one_got_wrong_does_not_spoil_the_next() -> None:
    compiler = Compiler(vocabulary(), LONG_S)
    for _ in range(3):
        with pytest.raises(RpcError, match="can't be kept"):
            compiler.compile(source("("))

    assert compiler.compile(source("a")).tokens_min == 1
