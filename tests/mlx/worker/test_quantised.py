"""KV caches of few bits: in a batch each sequence says what it says alone."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models.cache import QuantizedKVCache, make_prompt_cache
from mlx_lm.models.llama import Model, ModelArgs

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.worker.engine.batch import Batch
from mlxsup.worker.engine.member import Member
from mlxsup.worker.engine.quantised import CacheMaker
from mlxsup.worker.engine.sampling import greedy
from tests.mlx.worker.guessing import Eager, Guesser

ANSWER_TOKENS = 12
PROMPT_LENGTHS = {1: 3, 2: 40, 3: 17, 4: 1}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    mx.random.seed(3)
    args = ModelArgs(
        model_type="llama",
        hidden_size=128,
        num_hidden_layers=3,
        intermediate_size=96,
        num_attention_heads=4,
        rms_norm_eps=1e-5,
        vocab_size=97,
        num_key_value_heads=2,
    )
    made: nn.Module = Model(args)
    return made


def prompt(id: int) -> list[int]:
    return [(3 + 11 * id + 5 * at * at) % 97 for at in range(PROMPT_LENGTHS[id])]


def alone(model: nn.Module, id: int, bits: int) -> list[int]:
    """By mlx-lm's own quantised cache, token by token."""
    caches = [QuantizedKVCache(group_size=32, bits=bits) for _ in make_prompt_cache(model)]
    logits = model(mx.array([prompt(id)]), cache=caches)[0, -1]
    answer: list[int] = []
    while len(answer) < ANSWER_TOKENS:
        answer += [int(token) for token in np.array(mx.argmax(logits, keepdims=True))]
        logits = model(mx.array([answer[-1:]]), cache=caches)[0, -1]
    return answer


def member(maker: CacheMaker, id: int) -> Member:
    tokens = prompt(id)
    return Member(
        id=id,
        urgency=2,
        tokens=tokens,
        prompt_tokens=len(tokens),
        tokens_max=len(tokens) + ANSWER_TOKENS,
        sampler=greedy,
        processors=[],
        caches=maker.make(),
    )


@pytest.mark.parametrize("bits", [4, 8])
def test_each_says_in_the_batch_what_it_says_alone_also_after_giving_way(model: nn.Module, bits: int) -> None:
    texts = {id: alone(model, id, bits) for id in PROMPT_LENGTHS}
    batch = Batch(model, sequences_max=8, chunk_tokens=16, widths=Eager())
    maker = CacheMaker(model, bits)
    members = {id: member(maker, id) for id in PROMPT_LENGTHS}
    members[2].guesser = Guesser(prompt(2) + texts[2], wrong_one_in=3)
    answers: dict[int, list[int]] = {id: [] for id in members}
    for one in members.values():
        batch.add(one)
    gave_way = False
    while any(len(tokens) < ANSWER_TOKENS for tokens in answers.values()):
        for choice in batch.step(lambda: False) or []:
            answers[choice.id].append(choice.token)
        if not gave_way and len(answers[3]) == 4:
            gave_way = True
            batch.remove([members[3]], keeps_caches=True)
            batch.add(members[3])

    assert {id: tokens[:ANSWER_TOKENS] for id, tokens in answers.items()} == texts


def test_they_take_as_much_less_as_their_bits_say(model: nn.Module) -> None:
    sizes = {}
    for bits in (None, 8, 4):
        caches = CacheMaker(model, bits).make()
        model(mx.array([prompt(2)]), cache=caches)
        sizes[bits] = sum(cache.nbytes for cache in caches)

    # Of float32: a scale and a bias for each 32 values.
    assert sizes[8] == sizes[None] * (8 + 2) // 32
    assert sizes[4] == sizes[None] * (4 + 2) // 32


def test_a_model_with_other_caches_refuses_by_name() -> None:
    args = ModelArgs(
        model_type="llama",
        hidden_size=64,
        num_hidden_layers=2,
        intermediate_size=96,
        num_attention_heads=4,
        rms_norm_eps=1e-5,
        vocab_size=97,
        sliding_window=12,
        layer_types=["full_attention", "sliding_attention"],
    )
    with pytest.raises(RpcError, match="`kv_bits` can't be had") as raised:
        CacheMaker(Model(args), 8)
    assert raised.value.kind is ErrorKind.UNSUPPORTED
