"""The engine of the faulty workers is an honest one: what it gives is what was announced, wherever it goes on."""

import pytest

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import FinishReason
from mlxsup.protocol.worker_link import Generate, Sampling
from mlxsup.worker.engine.interface import Emission
from scripts.faulty_worker.engine import FaultyEngine, faulty_text, faulty_tokens
from scripts.faulty_worker.faults import Faults
from scripts.faulty_worker.ledger import Ledger
from scripts.faulty_worker.script import Fault, FaultKind, Script

TOKENS = 24
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


def order(script: Script, tokens: list[int], chars: int) -> Generate:
    return Generate(
        max_tokens=TOKENS,
        sampling=_SAMPLING,
        prompt=script.prompt(),
        delivered_tokens=tokens,
        delivered_chars=chars,
    )


def make_engine() -> FaultyEngine:
    return FaultyEngine(Faults(Ledger(None), outgoing=-1), b"", prefill_chunk_tokens=16, load_s=0.0)


def emissions(tokens: list[int], chars: int, *, steps: int = 1000) -> list[Emission]:
    """Of a request that goes on behind those; until its end, or for so many steps that gave something."""
    engine = make_engine()
    only = engine.submit(1, engine.prepare(order(Script(seed=3, prompt_tokens=20), tokens, chars)))
    if only is not None:
        return [only]
    found: list[Emission] = []
    while len(found) < steps and engine.sequences:
        found += engine.step(lambda: False)
    return found


@pytest.mark.parametrize("cut", range(TOKENS + 1))
def test_a_text_that_is_cut_anywhere_goes_on_exactly(cut: int) -> None:
    before = emissions([], 0, steps=cut)
    text = "".join(emission.text for emission in before)
    tokens = [token for emission in before for token in emission.tokens]
    after = emissions(tokens, len(text))

    assert text + "".join(emission.text for emission in after) == faulty_text(3, TOKENS)
    assert tokens + [token for emission in after for token in emission.tokens] == faulty_tokens(3, TOKENS)
    assert after[-1].finish is FinishReason.LENGTH


def test_some_tokens_give_their_text_with_the_next_one_only() -> None:
    assert {bool(emission.text) for emission in emissions([], 0)} == {True, False}


@pytest.mark.parametrize(
    ("tokens", "chars"), [([1, 2, 3], 0), (faulty_tokens(4, 3), 0), (faulty_tokens(3, 3), 1000)]
)
def test_what_it_would_not_have_delivered_is_refused(tokens: list[int], chars: int) -> None:
    with pytest.raises(RpcError) as raised:
        make_engine().prepare(order(Script(seed=3), tokens, chars))
    assert raised.value.kind is ErrorKind.INTERNAL


def test_a_fault_that_is_to_be_counted_needs_a_ledger() -> None:
    script = Script(seed=3, fault=Fault(kind=FaultKind.ABORT, times=1))
    with pytest.raises(RpcError) as raised:
        make_engine().prepare(order(script, [], 0))
    assert raised.value.kind is ErrorKind.INVALID_PARAMS
