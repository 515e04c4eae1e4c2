"""The batch loop around an engine that counts: every request is answered once, whatever order things come in."""

import os
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.exit_codes import ExitCode
from mlxsup.protocol.generation import CalledFunction, FinishReason, ToolCall
from mlxsup.protocol.self_test import SelfTestResult
from mlxsup.protocol.worker_link import (
    REQUEST_MARK,
    Cancel,
    Detokenize,
    Generate,
    LeaseTurn,
    Load,
    Loaded,
    SelfTest,
    Shutdown,
    Tokenize,
    Tune,
)
from mlxsup.worker.batch_loop import BatchLoop
from mlxsup.worker.engine.interface import Emission, IsWanted, Lease, Prepared
from mlxsup.worker.inbox import Command, EndOfInput, Inbox
from mlxsup.worker.outbox import Outbox
from mlxsup.worker.vitals import Vitals
from tests.fakes.requests import GREEDY

WAIT_S = 10.0


class CountingEngine:
    """Each step gives each sequence one token, up to its max_tokens. Preparing waits while `gate` is closed."""

    def __init__(self) -> None:
        self.loaded = Loaded(
            model_type="", context_tokens=9, weights_bytes=0, vocabulary_tokens=9, load_s=0.0
        )
        self.gate = threading.Event()
        self.gate.set()
        self.preparing = threading.Event()
        self.running: dict[int, tuple[int, int]] = {}
        # Steps that are put aside before each that is computed, and what the engine was told meanwhile.
        self.hesitates = 0
        self.wanted: list[bool] = []
        # Nothing is computed without a turn for so many tokens; 0: it needs none.
        self.lease_tokens = 0
        self.lease: Lease | None = None
        self.tuned: list[Tune] = []
        self.forgotten: list[int] = []
        self.gave_way: list[int] = []
        # A self-test has so many steps at least, and ends once it may; and how many sequences ran at each.
        self.test_steps = 0
        self.test_may_end = threading.Event()
        self.ran: list[int] = []

    def prepare(self, request: Generate) -> Prepared:
        self.preparing.set()
        assert self.gate.wait(WAIT_S)
        if request.prompt == "refused":
            raise RpcError(ErrorKind.LIMIT_EXCEEDED, "no")
        if request.prompt == "broken":
            raise ZeroDivisionError
        return Prepared([1, 2], request)

    def submit(self, id: int, prepared: Prepared) -> None:
        self.running[id] = (0, prepared.request.max_tokens)

    def cancel(self, id: int) -> Emission:
        del self.running[id]
        call = ToolCall(id="call", function=CalledFunction(name="held", arguments="{}"))
        return Emission(
            id, "held back", [], FinishReason.CANCELLED, reasoning="held in mind", tool_calls=[call]
        )

    def give_way(self, id: int) -> Emission:
        self.gave_way.append(id)
        return self.cancel(id)

    def rest(self, is_wanted: IsWanted) -> None:
        pass

    def step_self_test(self, _: IsWanted) -> SelfTestResult | None:
        self.ran.append(len(self.running))
        is_over = len(self.ran) >= self.test_steps and self.test_may_end.is_set()
        return SelfTestResult(checks=[], seconds=1.5) if is_over else None

    def forget(self, id: int) -> None:
        self.forgotten.append(id)

    def share(self, lease: Lease) -> None:
        self.lease = lease

    def tune(self, order: Tune) -> None:
        self.tuned.append(order)

    @property
    def prefill_tokens(self) -> int:
        return 0

    def step(self, is_wanted: IsWanted) -> list[Emission] | None:
        if self.hesitates:
            self.hesitates -= 1
            self.wanted.append(is_wanted())
            return None
        if self.lease is not None and self.lease_tokens and not self.lease.allows(self.lease_tokens):
            self.lease.ask(self.lease_tokens, 0)
            return []
        emissions = []
        for id, (done, most) in list(self.running.items()):
            self.running[id] = (done + 1, most)
            if done + 1 == most:
                del self.running[id]
            emissions.append(Emission(id, "x", [done], FinishReason.LENGTH if done + 1 == most else None))
        return emissions

    def tokenize(self, text: str) -> list[int]:
        return [len(text)]

    def detokenize(self, tokens: list[int]) -> str:
        return str(tokens)


class Bench:
    def __init__(self, engine: CountingEngine) -> None:
        self.engine = engine
        self.inbox = Inbox()
        self.reading, writing = os.pipe()
        self._data = b""
        self.code: ExitCode | None = None
        loop = BatchLoop(engine, self.inbox, Outbox(writing), Vitals())

        def run() -> None:
            self.code = loop.run()
            os.close(writing)

        self.thread = threading.Thread(target=run)
        self.thread.start()

    def generate(self, id: int, prompt: str = "p", tokens: int = 3) -> None:
        self.inbox.put(Command(id, Generate(max_tokens=tokens, sampling=GREEDY, prompt=prompt)))

    def end(self) -> list[Any]:
        """Shut down; everything that was said, up to the end of the pipe."""
        self.inbox.put(Command(0, Shutdown(grace_s=0.0)))
        self.thread.join(WAIT_S)
        while chunk := os.read(self.reading, 1 << 16):
            self._data += chunk
        return [msgspec.json.decode(line) for line in self._data.splitlines()]

    def wait_answer(self, id: int) -> None:
        self.wait_for(f'"id":{id},'.encode())

    def wait_for(self, text: bytes) -> None:
        while text not in self._data:
            self._data += os.read(self.reading, 1 << 16)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench(CountingEngine())
    yield bench
    bench.inbox.put(EndOfInput())
    bench.thread.join(WAIT_S)
    os.close(bench.reading)


def answers(frames: list[Any]) -> dict[int, Any]:
    """By id; asserts that there is one each."""
    found: dict[int, Any] = {}
    for frame in frames:
        if "id" in frame:
            assert frame["id"] not in found
            found[frame["id"]] = frame.get("result", frame.get("error"))
    return found


def test_a_request_gives_its_tokens_and_one_answer(bench: Bench) -> None:
    bench.generate(5, tokens=4)
    bench.wait_answer(5)
    frames = bench.end()

    assert answers(frames)[5] == {"finish_reason": "length", "prompt_tokens": 2, "completion_tokens": 4}
    steps = [frame["params"]["deltas"] for frame in frames if frame.get("method") == "step"]
    assert [token for step in steps for delta in step for token in delta[2]] == [0, 1, 2, 3]
    assert bench.code is ExitCode.CLEAN


def test_a_cancel_that_comes_while_the_request_is_prepared_is_obeyed(bench: Bench) -> None:
    bench.engine.gate.clear()
    bench.generate(5, tokens=1000)
    assert bench.engine.preparing.wait(WAIT_S)
    bench.inbox.put(Command(0, Cancel(id=5)))
    bench.engine.gate.set()
    bench.wait_answer(5)

    assert answers(bench.end())[5]["finish_reason"] == "cancelled"


def test_a_cancel_of_a_request_that_runs_ends_it_and_a_late_or_unknown_one_does_nothing(bench: Bench) -> None:
    bench.generate(5, tokens=10**9)
    bench.inbox.put(Command(0, Cancel(id=99)))
    os.read(bench.reading, 1)
    bench.inbox.put(Command(0, Cancel(id=5)))
    bench.wait_answer(5)
    bench.inbox.put(Command(0, Cancel(id=5)))
    bench.generate(6, tokens=1)
    bench.wait_answer(6)


@pytest.mark.parametrize("goes_on", [False, True])
def test_what_is_held_back_is_said_at_a_cancel_but_not_of_a_request_that_goes_on_later(
    bench: Bench, goes_on: bool
) -> None:
    bench.generate(5, tokens=10**9)
    bench.wait_for(b'"step"')
    bench.inbox.put(Command(0, Cancel(id=5, goes_on=goes_on)))
    bench.wait_answer(5)
    frames = bench.end()

    deltas = [
        delta for frame in frames if frame.get("method") == "step" for delta in frame["params"]["deltas"]
    ]
    assert answers(frames)[5]["finish_reason"] == "cancelled"
    assert any("held back" in delta[1] for delta in deltas) is not goes_on
    assert any("held in mind" in delta[3] for delta in deltas) is not goes_on
    assert any(delta[4] for delta in deltas) is not goes_on
    assert bench.engine.gave_way == ([5] if goes_on else [])


def test_a_cancel_of_a_request_that_gave_way_makes_the_engine_forget_it(bench: Bench) -> None:
    bench.generate(5, tokens=10**9)
    bench.wait_for(b'"step"')
    bench.inbox.put(Command(0, Cancel(id=5, goes_on=True)))
    bench.wait_answer(5)
    bench.inbox.put(Command(0, Cancel(id=5)))
    bench.end()

    assert bench.engine.forgotten == [5]


@pytest.mark.parametrize(("prompt", "kind"), [("refused", "limit_exceeded"), ("broken", "internal")])
def test_a_request_that_can_not_be_prepared_fails_alone(
    bench: Bench, prompt: str, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    bench.generate(5, prompt=prompt)
    bench.generate(6, tokens=2)
    bench.wait_answer(5)
    bench.wait_answer(6)
    found = answers(bench.end())

    assert found[5]["data"]["kind"] == kind
    assert found[6]["completion_tokens"] == 2
    said = capfd.readouterr().err.splitlines()
    assert bool(said) == (kind == "internal")
    assert all(line.startswith(REQUEST_MARK) for line in said)


def test_a_self_test_is_computed_while_nothing_else_is_and_all_who_asked_have_its_result(
    bench: Bench,
) -> None:
    bench.engine.test_steps = 1000
    bench.inbox.put(Command(-1, SelfTest()))
    bench.inbox.put(Command(-2, SelfTest()))
    bench.engine.test_may_end.set()
    bench.wait_answer(-1)
    bench.wait_answer(-2)
    bench.generate(5, tokens=2)
    bench.wait_answer(5)
    found = answers(bench.end())

    assert found[-1] == found[-2] == {"checks": [], "seconds": 1.5}
    assert len(bench.engine.ran) >= 1000
    assert set(bench.engine.ran) == {0}


def test_an_engine_without_a_self_test_says_so() -> None:
    class Untested(CountingEngine):
        step_self_test = None  # type: ignore[assignment]

    bench = Bench(Untested())
    bench.inbox.put(Command(-1, SelfTest()))
    bench.wait_answer(-1)
    found = answers(bench.end())
    os.close(bench.reading)

    assert found[-1]["data"]["kind"] == "unsupported"


def test_what_runs_goes_on_between_the_steps_of_a_self_test(bench: Bench) -> None:
    bench.generate(5, tokens=10**9)
    bench.wait_for(b'"step"')
    bench.inbox.put(Command(-1, SelfTest()))
    bench.generate(6, tokens=50)
    bench.wait_answer(6)
    bench.engine.test_may_end.set()
    bench.wait_answer(-1)
    bench.inbox.put(Command(0, Cancel(id=5)))
    bench.wait_answer(5)
    bench.end()

    # A step of each in turn.
    assert bench.engine.ran.count(2) == 49
    assert 0 not in bench.engine.ran


def test_other_bounds_reach_the_engine_between_two_steps(bench: Bench) -> None:
    bench.generate(5, tokens=10**9)
    bench.inbox.put(Command(0, Tune(prefill_chunk_tokens=7)))
    bench.wait_for(b'"step"')
    bench.inbox.put(Command(0, Cancel(id=5)))
    bench.wait_answer(5)
    bench.end()

    assert bench.engine.tuned == [Tune(prefill_chunk_tokens=7)]


def test_a_step_that_is_put_aside_goes_on_with_nothing_lost(bench: Bench) -> None:
    bench.engine.hesitates = 5
    bench.generate(5, tokens=4)
    bench.wait_answer(5)
    frames = bench.end()

    assert answers(frames)[5]["completion_tokens"] == 4
    assert bench.engine.wanted == [False] * 5


def test_what_waits_for_its_turn_is_computed_when_it_is_granted_and_cancels_are_obeyed_before(
    bench: Bench,
) -> None:
    bench.engine.lease_tokens = 100
    bench.inbox.put(Command(0, Tune(lease_tokens_min=64)))
    bench.generate(5, tokens=2)
    bench.wait_for(b"lease/ask")
    bench.generate(6, tokens=2)
    bench.inbox.put(Command(0, Cancel(id=6)))
    bench.wait_answer(6)
    bench.inbox.put(Command(0, LeaseTurn()))
    bench.wait_answer(5)
    frames = bench.end()

    assert answers(frames)[6]["finish_reason"] == "cancelled"
    assert answers(frames)[5]["completion_tokens"] == 2
    assert [frame["method"] for frame in frames if frame.get("method", "").startswith("lease")] == [
        "lease/ask"
    ]


def test_questions_are_answered_beside_the_batch(bench: Bench) -> None:
    bench.generate(5, tokens=10**9)
    bench.inbox.put(Command(6, Tokenize(text="abc")))
    bench.inbox.put(Command(7, Detokenize(tokens=[1])))
    bench.wait_answer(6)
    bench.wait_answer(7)
    bench.wait_for(b'"step"')

    assert 5 in bench.engine.running
    bench.inbox.put(Command(0, Cancel(id=5)))
    bench.wait_answer(5)


@pytest.mark.parametrize(
    ("item", "code"),
    [
        (EndOfInput(), ExitCode.CLEAN),
        (EndOfInput("garbage"), ExitCode.PROTOCOL_ERROR),
        (Command(0, Shutdown(grace_s=1.0)), ExitCode.CLEAN),
    ],
)
def test_each_way_to_end_has_its_exit_code(bench: Bench, item: Command | EndOfInput, code: ExitCode) -> None:
    bench.inbox.put(item)
    bench.thread.join(WAIT_S)

    assert bench.code is code


def test_a_second_load_is_a_protocol_error(bench: Bench) -> None:
    order = Load(
        model_path="/m",
        context_tokens_max=None,
        batch_sequences_max=1,
        prefill_chunk_tokens=16,
        float32=None,
        wired_limit_bytes=0,
        cache_limit_bytes=None,
        heartbeat_interval_s=1.0,
    )
    bench.inbox.put(Command(1, order))
    bench.thread.join(WAIT_S)

    assert bench.code is ExitCode.PROTOCOL_ERROR
