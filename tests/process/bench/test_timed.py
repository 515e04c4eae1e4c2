"""The engine of fixed pace: what it says, in which order, and how long that takes."""

import time

import msgspec
import pytest

from mlxsup.protocol import worker_link as link
from scripts.benchmarks.null_engine import NullEngine, flood_text
from scripts.benchmarks.timed import Speed, timed_prompt

_FAST = Speed(step_ms=0.0, answer_ms=0.0, prompt_token_ms=0.0)
_SAMPLING = link.Sampling(
    temperature=0,
    top_p=1,
    top_k=0,
    min_p=0,
    repetition_penalty=1,
    presence_penalty=0,
    frequency_penalty=0,
    seed=0,
)


def _order(
    *, prompt_tokens: int = 10, tokens: int = 4, urgency: int = 2, speed: Speed = _FAST, delivered: int = 0
) -> link.Generate:
    return link.Generate(
        max_tokens=tokens,
        sampling=_SAMPLING,
        prompt=timed_prompt(7, prompt_tokens, speed),
        urgency=urgency,
        delivered_tokens=[0] * delivered,
    )


def _submit(engine: NullEngine, id: int, order: link.Generate) -> None:
    engine.submit(id, engine.prepare(order))


def _step(engine: NullEngine) -> dict[int, str]:
    """Which sequences got which text."""
    emissions = engine.step(lambda: False)
    assert emissions is not None
    return {emission.id: emission.text for emission in emissions}


def test_a_text_is_the_one_of_its_seed_also_where_it_gave_way_in_between() -> None:
    engine = NullEngine()
    _submit(engine, 1, _order(tokens=6))
    steps = [_step(engine) for _ in range(4)]
    engine.give_way(1)
    _submit(engine, 1, _order(tokens=6, delivered=3))
    assert engine.prefill_tokens == 0
    steps += [_step(engine) for _ in range(3)]

    assert steps[0] == {}
    assert "".join(step.get(1, "") for step in steps) == flood_text(7, 6)
    assert engine.sequences == 0


def test_one_that_is_forgotten_reads_its_prompt_and_what_was_delivered_again() -> None:
    engine = NullEngine()
    _submit(engine, 1, _order())
    for _ in range(3):
        _step(engine)
    engine.give_way(1)
    engine.forget(1)

    _submit(engine, 1, _order(delivered=2))

    assert engine.prefill_tokens == 12


def test_prompts_are_read_in_chunks_between_the_tokens_of_answers() -> None:
    engine = NullEngine()
    _submit(engine, 1, _order(tokens=9))
    assert [_step(engine), set(_step(engine))] == [{}, {1}]

    _submit(engine, 2, _order(prompt_tokens=300))

    assert [sorted(_step(engine)) for _ in range(5)] == [[], [1], [], [1, 2], [1, 2]]


def test_a_more_urgent_prompt_is_read_whole_before_answers_go_on() -> None:
    engine = NullEngine()
    _submit(engine, 1, _order(tokens=9))
    _step(engine)

    _submit(engine, 2, _order(prompt_tokens=600, urgency=0))

    assert [sorted(_step(engine)) for _ in range(4)] == [[], [], [], [1, 2]]


def test_what_was_spent_before_somebody_came_is_not_spent_again() -> None:
    engine = NullEngine()
    _submit(engine, 1, _order(prompt_tokens=100, speed=Speed(0.0, 0.0, prompt_token_ms=1.0)))
    looks = iter([False] * 5)
    began_s = time.monotonic()
    interrupted = engine.step(lambda: next(looks, True))
    interrupted_s = time.monotonic()
    assert interrupted is None

    assert engine.step(lambda: False) == []

    assert time.monotonic() - began_s >= 0.1
    # However long the first part took, the second one took what was left of it: less than all, by its clock.
    assert time.monotonic() - interrupted_s >= 0.1 - (interrupted_s - began_s)


@pytest.mark.parametrize("tokens", [60, 400])
def test_an_order_is_about_as_long_as_the_prompt_that_it_stands_for(tokens: int) -> None:
    prompt = timed_prompt(2**31 - 1, tokens, _FAST)

    assert len(prompt) == pytest.approx(4 * tokens, abs=2)
    assert msgspec.json.decode(prompt)["prompt_tokens"] == tokens
