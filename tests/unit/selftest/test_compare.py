"""Two answers to a prompt are the same, or one token is not though no rounding could decide it."""

import math

import pytest

from mlxsup.worker.engine.selftest.compare import Trace, compare, fault, tolerance
from mlxsup.worker.engine.selftest.golden import golden_prompts

RIGHT = Trace([1, 2, 3], [5.0, 0.01, 5.0])


def test_all_that_is_the_same_is_counted() -> None:
    assert compare([RIGHT, RIGHT], [RIGHT, RIGHT], 0.1).tokens == 6
    assert compare([RIGHT], [RIGHT], 0.1).why == ""


@pytest.mark.parametrize(("token", "why"), [(1, True), (2, False), (3, True)])
def test_another_token_counts_where_it_was_clearly_behind(token: int, why: bool) -> None:
    other = [9 if each == token else each for each in RIGHT.tokens]
    found = compare([RIGHT], [Trace(other, [5.0, 5.0, 5.0])], 0.1)

    assert bool(found.why) is why
    assert found.tokens == token - 1


def test_what_follows_a_token_that_rounding_decided_is_another_text_and_says_nothing() -> None:
    found = compare([RIGHT, RIGHT], [Trace([1, 9, 9], [5.0] * 3), Trace([1, 2, 9], [5.0] * 3)], 0.1)

    assert "prompt 2 goes on otherwise at token 3" in found.why


def test_logits_that_are_no_numbers_are_wrong_though_the_token_is_the_same() -> None:
    found = compare([RIGHT], [Trace([1, 2, 3], [5.0, math.nan, 5.0])], 0.1)

    assert "no numbers at token 2" in found.why


def test_a_model_that_computes_no_numbers_or_tokens_of_no_vocabulary_is_at_fault_itself() -> None:
    assert fault(RIGHT, 4) == ""
    assert fault(Trace([1], [math.inf]), 4) == ""
    assert "no numbers" in fault(Trace([0], [math.nan]), 4)
    assert "token 3 of a vocabulary of 3" in fault(RIGHT, 3)


def test_a_model_rounds_as_the_coarsest_type_that_it_computes_in() -> None:
    single, half = tolerance(["float32"], None), tolerance(["float16"], None)
    brain = tolerance(["bfloat16", "float32"], None)

    assert single < half < brain
    assert tolerance(["float32"], 8) < tolerance(["float32"], 4)
    assert tolerance([], None) == brain


def encode(text: str) -> list[int]:
    return list(text.encode())


def test_there_are_eight_prompts_of_other_lengths_and_two_begin_alike() -> None:
    prompts = golden_prompts(encode, 2048)
    first, last = prompts[0].tokens, prompts[-1].tokens

    assert len({tuple(prompt.tokens) for prompt in prompts}) == 8
    assert len({len(prompt.tokens) for prompt in prompts}) >= 7
    assert first[:17] == last[:17]
    assert first[: len(last)] != last


@pytest.mark.parametrize("context", [16, 20, 2048])
@pytest.mark.parametrize("letters", [0, 1, 1000])
def test_each_has_tokens_and_room_for_its_answer_whatever_the_tokenizer_makes_of_it(
    context: int, letters: int
) -> None:
    for prompt in golden_prompts(lambda text: encode(text)[:letters], context):
        assert 1 <= len(prompt.tokens) <= context - prompt.answer_tokens
