"""The engine of the faulty workers is an honest one: what it gives is what was announced, wherever it goes on."""

from typing import Any

import msgspec
import pytest

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import FinishReason, JsonObjectFormat
from mlxsup.protocol.worker_link import Generate, Sampling
from mlxsup.worker.engine.interface import Emission
from scripts.faulty_worker.answers import Said, faulty_answer, faulty_logprobs, faulty_text, faulty_tokens
from scripts.faulty_worker.engine import FaultyEngine
from scripts.faulty_worker.faults import Faults
from scripts.faulty_worker.ledger import Ledger
from scripts.faulty_worker.script import Fault, FaultKind, Script

TOKENS = 24
SCRIPT = Script(seed=3, prompt_tokens=20, reasoning_tokens=7, call_every_tokens=4)
_SAMPLING = Sampling(
    temperature=0,
    top_p=1,
    top_k=0,
    min_p=0,
    repetition_penalty=1,
    presence_penalty=0,
    frequency_penalty=0,
    seed=0,
)


def order(
    script: Script, tokens: list[int], chars: int, reasoning_chars: int = 0, calls: int = 0
) -> Generate:
    return Generate(
        max_tokens=TOKENS,
        sampling=_SAMPLING,
        prompt=script.prompt(),
        delivered_tokens=tokens,
        delivered_chars=chars,
        logprobs=2,
        delivered_reasoning_chars=reasoning_chars,
        delivered_tool_calls=calls,
    )


def make_engine() -> FaultyEngine:
    return FaultyEngine(Faults(Ledger(None), outgoing=-1), b"", prefill_chunk_tokens=16, load_s=0.0)


def emissions(tokens: list[int], said: Said, *, steps: int = 1000) -> list[Emission]:
    """Of a request that goes on behind those; until its end, or for so many steps that gave something."""
    engine = make_engine()
    behind = (len(said.text), len(said.reasoning), len(said.tool_calls))
    only = engine.submit(1, engine.prepare(order(SCRIPT, tokens, *behind)))
    if only is not None:
        return [only]
    found: list[Emission] = []
    while len(found) < steps and engine.sequences:
        found += engine.step(lambda: False)
    return found


@pytest.mark.parametrize("cut", range(TOKENS + 1))
def test_an_answer_that_is_cut_anywhere_goes_on_exactly(cut: int) -> None:
    before = emissions([], Said(), steps=cut)
    said = all_of(before)
    tokens = [token for emission in before for token in emission.tokens]
    after = emissions(tokens, said)

    assert said + all_of(after) == faulty_answer(SCRIPT, TOKENS)
    assert tokens + [token for emission in after for token in emission.tokens] == faulty_tokens(3, TOKENS)
    logprobs = [entry for emission in before + after for entry in emission.logprobs]
    assert logprobs == faulty_logprobs(3, TOKENS, 2)
    assert [entry.token for entry in logprobs] == faulty_tokens(3, TOKENS)
    assert after[-1].finish is FinishReason.LENGTH


def all_of(emissions: list[Emission]) -> Said:
    said = Said()
    for emission in emissions:
        said += Said(emission.text, emission.reasoning, emission.tool_calls)
    return said


def test_some_tokens_say_what_they_do_with_the_next_one_only_and_all_of_it_is_of_several_kinds() -> None:
    found = emissions([], Said())
    assert {bool(all_of([emission]) == Said()) for emission in found} == {True, False}
    whole = all_of(found)
    assert whole.text
    assert whole.reasoning
    assert len(whole.tool_calls) > 1


def test_where_its_script_says_nothing_of_it_an_answer_is_text_alone() -> None:
    assert faulty_answer(Script(seed=3), TOKENS) == Said(faulty_text(3, TOKENS))


@pytest.mark.parametrize(
    ("tokens", "delivered"),
    [
        ([1, 2, 3], (0,)),
        (faulty_tokens(4, 3), (0,)),
        (faulty_tokens(3, 3), (1000,)),
        (faulty_tokens(3, 3), (0, 1000)),
        (faulty_tokens(3, 3), (0, 0, 1)),
    ],
)
def test_what_it_would_not_have_delivered_is_refused(tokens: list[int], delivered: tuple[int, ...]) -> None:
    with pytest.raises(RpcError) as raised:
        make_engine().prepare(order(SCRIPT, tokens, *delivered))
    assert raised.value.kind is ErrorKind.INTERNAL


@pytest.mark.parametrize(
    ("asked", "path"),
    [
        ({"format": JsonObjectFormat()}, "$.response_format"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "$.tools"),
        ({"adapter": "a"}, "$.adapter"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_it_can_not_do_is_refused_by_name(asked: dict[str, Any], path: str) -> None:
    with pytest.raises(RpcError) as raised:
        make_engine().prepare(msgspec.structs.replace(order(SCRIPT, [], 0), **asked))
    assert (raised.value.kind, raised.value.data.path) == (ErrorKind.UNSUPPORTED, path)


def test_a_fault_that_is_to_be_counted_needs_a_ledger() -> None:
    script = Script(seed=3, fault=Fault(kind=FaultKind.ABORT, times=1))
    with pytest.raises(RpcError) as raised:
        make_engine().prepare(order(script, [], 0))
    assert raised.value.kind is ErrorKind.INVALID_PARAMS
