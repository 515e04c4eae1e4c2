"""A draft model guesses, and the model says what it would have said."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models.llama import Model, ModelArgs

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.worker.engine.batch import Batch
from mlxsup.worker.engine.draft import DraftModel
from mlxsup.worker.engine.member import Member
from mlxsup.worker.engine.quantised import CacheMaker
from mlxsup.worker.engine.sampling import greedy
from tests.mlx.worker.guessing import Eager

ANSWER_TOKENS = 20
LENGTHS = {1: 3, 2: 300, 3: 17}


def make_model(seed: int, layer_types: list[str] | None = None) -> nn.Module:
    mx.random.seed(seed)
    args = ModelArgs(
        model_type="llama",
        hidden_size=64,
        num_hidden_layers=2,
        intermediate_size=96,
        num_attention_heads=4,
        rms_norm_eps=1e-5,
        vocab_size=97,
        sliding_window=12,
        layer_types=layer_types or ["full_attention"] * 2,
    )
    made: nn.Module = Model(args)
    return made


def answers(model: nn.Module, draft: nn.Module | None) -> tuple[dict[int, list[int]], int]:
    """What each says, and how many steps it took."""
    batch = Batch(model, sequences_max=8, chunk_tokens=64, widths=Eager())
    maker = CacheMaker(model, None)
    drafts = None if draft is None else DraftModel(draft)
    found: dict[int, list[int]] = {}
    for id, length in LENGTHS.items():
        tokens = [(3 + 11 * id + 5 * at * at) % 97 for at in range(length)]
        found[id] = []
        batch.add(
            Member(
                id=id,
                urgency=2,
                tokens=tokens,
                prompt_tokens=length,
                tokens_max=length + ANSWER_TOKENS,
                sampler=greedy,
                processors=[],
                guesser=None if drafts is None else drafts.guesser(),
                caches=maker.make(),
            )
        )
    steps = 0
    while any(len(tokens) < ANSWER_TOKENS for tokens in found.values()):
        steps += 1
        for choice in batch.step(lambda: False) or []:
            found[choice.id].append(choice.token)
    return {id: tokens[:ANSWER_TOKENS] for id, tokens in found.items()}, steps


@pytest.mark.parametrize("seed", [1, 2], ids=["the same model", "another model"])
def test_no_text_changes_whoever_drafts_and_who_drafts_well_saves_steps(seed: int) -> None:
    plain, plain_steps = answers(make_model(1), None)
    drafted, steps = answers(make_model(1), make_model(seed))

    assert drafted == plain
    if seed == 1:
        assert steps < plain_steps * 2 / 3


def test_a_draft_model_of_which_nothing_can_be_taken_back_is_refused() -> None:
    with pytest.raises(RpcError, match="the draft model can't be used") as raised:
        DraftModel(make_model(1, ["sliding_attention", "full_attention"]))
    assert raised.value.kind is ErrorKind.UNSUPPORTED
