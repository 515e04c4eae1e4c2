"""A model of random weights passes its self-test; one that is broken in one way loses the feature that is, and no other."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_map
from mlx_lm.models.cache import BatchKVCache
from mlx_lm.models.llama import Model, ModelArgs

from mlxsup.protocol.self_test import Check, SelfTestResult
from mlxsup.worker.engine.adapters.linear import Routes
from mlxsup.worker.engine.lookup import Lookup
from mlxsup.worker.engine.prefixes import prefixes
from mlxsup.worker.engine.prefixes.caches import join_pieces
from mlxsup.worker.engine.quantised import CacheMaker
from mlxsup.worker.engine.selftest.golden import Golden, golden_prompts
from mlxsup.worker.engine.selftest.rig import Rig
from mlxsup.worker.engine.selftest.selftest import SelfTest

VOCABULARY = 97
TOLERANCE = 0.01
SWITCHED_OFF = "switched_off"


class Mixing(Model):  # type: ignore[misc]
    """Each row has the logits of the one before it."""

    def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
        logits: mx.array = super().__call__(inputs, cache=cache)
        return mx.roll(logits, 1, 0)


class Refusing(Model):  # type: ignore[misc]
    """It can only compute one sequence."""

    def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
        if len(inputs) > 1:
            raise ValueError("[reshape] cannot")
        logits: mx.array = super().__call__(inputs, cache=cache)
        return logits


class Shifting(Model):  # type: ignore[misc]
    """Of several sequences it says the token behind the right one."""

    def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
        logits: mx.array = super().__call__(inputs, cache=cache)
        return mx.roll(logits, 1, -1) if len(inputs) > 1 else logits


class NoNumbers(Model):  # type: ignore[misc]
    def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
        logits: mx.array = super().__call__(inputs, cache=cache)
        return logits * mx.nan


def make_model(kind: type[Model] = Model, *, sliding: bool = False) -> nn.Module:
    mx.random.seed(7)
    other = "sliding_attention" if sliding else "full_attention"
    model: nn.Module = kind(
        ModelArgs(
            model_type="llama",
            hidden_size=64,
            num_hidden_layers=2,
            intermediate_size=64,
            num_attention_heads=2,
            num_key_value_heads=2,
            rms_norm_eps=1e-5,
            vocab_size=VOCABULARY,
            layer_types=["full_attention", other],
            sliding_window=64,
            tie_word_embeddings=False,
        )
    )
    # As they are drawn it would say one word for ever, whatever it was told.
    model.update(tree_map(lambda weight: weight * 3, model.parameters()))
    return model


def check(
    model: nn.Module, *, kv_bits: int | None = None, sequences_max: int = 16, **changes: Any
) -> SelfTestResult:
    rig = Rig(
        **{
            "model": model,
            "routes": Routes(),
            "maker": CacheMaker(model, kv_bits),
            "prompts": golden_prompts(lambda text: [letter % VOCABULARY for letter in text.encode()], 1000),
            "vocabulary_tokens": VOCABULARY,
            "bytes_per_token": 1024,
            "sequences_max": sequences_max,
            "keeps_prefixes": kv_bits is None,
            "guesser": Lookup,
            "tolerance": TOLERANCE,
            **changes,
        }
    )
    test = SelfTest(rig, [])
    result = None
    while result is None:
        result = test.step(lambda: False)
    return result


def by_feature(result: SelfTestResult) -> dict[str, Check]:
    return {each.feature: each for each in result.checks}


def outcomes(result: SelfTestResult) -> dict[str, str]:
    return {name: each.outcome for name, each in by_feature(result).items()}


def all_ok(**others: str) -> dict[str, str]:
    return {"model": "ok", "batch": "ok", "prefix_cache": "ok", "speculation": "ok", **others}


def test_one_that_is_right_passes_and_tokens_of_each_feature_were_compared() -> None:
    result = check(make_model())

    assert outcomes(result) == all_ok()
    assert all(each.tokens >= 6 for each in result.checks)
    assert result.passed
    assert result.switched_off == []


def test_of_caches_of_few_bits_nothing_is_kept_and_the_rest_is_compared_with_such_caches() -> None:
    assert outcomes(check(make_model(), kv_bits=8)) == all_ok(prefix_cache="not_applicable")


def test_where_nothing_can_be_taken_back_nothing_is_guessed() -> None:
    found = by_feature(check(make_model(sliding=True)))

    assert (found["speculation"].outcome, found["prefix_cache"].outcome) == ("not_applicable", "ok")
    assert "taken back" in found["speculation"].why


def test_one_sequence_at_a_time_by_configuration_is_no_batch_to_check() -> None:
    assert outcomes(check(make_model(), sequences_max=1)) == all_ok(batch="not_applicable")


@pytest.mark.parametrize("kind", [Mixing, Refusing])
def test_a_model_that_is_wrong_or_fails_in_a_batch_loses_that_and_nothing_else(
    kind: type[Model], capfd: pytest.CaptureFixture[str]
) -> None:
    result = check(make_model(kind))

    assert outcomes(result) == all_ok(batch=SWITCHED_OFF)
    assert result.switched_off == ["batch"]
    assert by_feature(result)["batch"].why
    assert ("[reshape] cannot" in capfd.readouterr().err) == (kind is Refusing)


def test_beginnings_that_are_kept_wrong_cost_the_prefix_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def join(pieces: Any) -> Any:
        caches = join_pieces(pieces)
        for cache in caches:
            cache.values = mx.flip(cache.values, axis=2)
        return caches

    monkeypatch.setattr(prefixes, "join_pieces", join)

    assert outcomes(check(make_model())) == all_ok(prefix_cache=SWITCHED_OFF)


def test_caches_that_give_nothing_back_cost_speculation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BatchKVCache, "trim", lambda _, count: count)

    assert outcomes(check(make_model())) == all_ok(speculation=SWITCHED_OFF)


def test_guesses_that_fail_cost_speculation() -> None:
    class Broken(Lookup):
        def may_follow(self, _: list[int]) -> int:
            raise LookupError

    assert outcomes(check(make_model(), guesser=Broken)) == all_ok(speculation=SWITCHED_OFF)


def test_a_model_that_computes_no_numbers_fails_and_nothing_else_is_blamed() -> None:
    result = check(make_model(NoNumbers))

    assert outcomes(result) == {"model": "failed"}
    assert not result.passed


def test_a_token_of_no_vocabulary_is_the_models_own_fault() -> None:
    assert outcomes(check(make_model(), vocabulary_tokens=2)) == {"model": "failed"}


def test_where_rounding_could_decide_everything_nothing_is_blamed() -> None:
    # All begin together, so that in the batch no token is right.
    prompts = [Golden([number, 2, 3, 4], 1) for number in range(8)]
    result = check(make_model(Shifting), tolerance=1e9, prompts=prompts)

    assert result.passed
    assert by_feature(result)["batch"].outcome == "not_applicable"
    assert "too close" in by_feature(result)["batch"].why
