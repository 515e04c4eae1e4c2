"""The whole engine tests itself between the steps of what runs, and goes on without what is wrong."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_map
from mlx_lm.models.cache import BatchKVCache
from mlx_lm.models.llama import Model

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.self_test import SelfTestResult
from mlxsup.protocol.worker_link import Generate, Load, Tune
from mlxsup.worker.engine import loading
from mlxsup.worker.engine.embedding.engine import EmbeddingEngine
from mlxsup.worker.engine.load import load_engine
from mlxsup.worker.engine.prefixes import prefixes
from mlxsup.worker.engine.prefixes.caches import join_pieces
from tests.fakes.requests import GREEDY
from tests.mlx.outputs.tokenizers import QWEN3, make_folder

TOKENS = 12
TEXTS = ("Once upon a time there was a king who had three", "x", "One two three one two three one two")


class Mixing(Model):  # type: ignore[misc]
    """Each row has the logits of the one before it."""

    def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
        logits: mx.array = super().__call__(inputs, cache=cache)
        return mx.roll(logits, 1, 0)


class NoNumbers(Model):  # type: ignore[misc]
    def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
        logits: mx.array = super().__call__(inputs, cache=cache)
        return logits * mx.nan


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    mx.random.seed(5)
    return make_folder(tmp_path_factory.mktemp("model"), QWEN3)


@pytest.fixture
def load(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Loads the same weights as a model of that kind."""
    read = loading.load_weights

    def load(kind: type[Model] = Model, **order: Any) -> EmbeddingEngine:
        def load_weights(*arguments: Any) -> tuple[nn.Module, dict[str, Any]]:
            model, config = read(*arguments)
            # As they are drawn it would say one word for ever, whatever it was told.
            model.update(tree_map(lambda weight: weight * 6, model.parameters()))
            model.__class__ = kind
            return model, config

        monkeypatch.setattr(loading, "load_weights", load_weights)
        fields: dict[str, Any] = {
            "model_path": str(folder),
            "context_tokens_max": None,
            "batch_sequences_max": 8,
            "prefill_chunk_tokens": 64,
            "float32": None,
            "wired_limit_bytes": 0,
            "cache_limit_bytes": None,
            "heartbeat_interval_s": 1,
            "prefix_bytes_max": 1 << 24,
            "parked_bytes_max": 1 << 24,
        }
        return load_engine(Load(**fields | order), lambda *_: None)

    return load


def submit(engine: EmbeddingEngine, id: int, text: str, delivered: list[int] | None = None) -> None:
    request = Generate(max_tokens=TOKENS, sampling=GREEDY, prompt=text, delivered_tokens=delivered or [])
    engine.submit(id, engine.prepare(request))


class Answers:
    def __init__(self, engine: EmbeddingEngine) -> None:
        self.engine = engine
        self.tokens: dict[int, list[int]] = {}
        self.cached: dict[int, int] = {}

    def step(self) -> None:
        for emission in self.engine.step(lambda: False) or []:
            self.tokens.setdefault(emission.id, []).extend(emission.tokens)
            if emission.finish is not None:
                self.cached[emission.id] = emission.cached_tokens

    def end(self, *ids: int) -> list[list[int]]:
        while not set(ids) <= set(self.cached):
            self.step()
        return [self.tokens.get(id, []) for id in ids]


def say(engine: EmbeddingEngine, *texts: str) -> list[list[int]]:
    """All at once."""
    for id, text in enumerate(texts, 1):
        submit(engine, id, text)
    return Answers(engine).end(*range(1, len(texts) + 1))


def self_test(engine: EmbeddingEngine) -> SelfTestResult:
    result = None
    while result is None:
        result = engine.step_self_test(lambda: False)
    return result


def test_a_load_without_one_tells_of_none_and_one_with_it_tells_what_it_found(load: Any) -> None:
    assert load().loaded.self_test is None
    result = load(self_test=True).loaded.self_test

    assert {check.outcome for check in result.checks} == {"ok"}


def test_a_model_that_computes_no_numbers_is_not_loaded(load: Any) -> None:
    with pytest.raises(RpcError, match="no numbers") as failed:
        load(NoNumbers, self_test=True)

    assert failed.value.kind is ErrorKind.MODEL_LOAD_FAILED


def test_what_runs_meanwhile_has_the_same_text(load: Any) -> None:
    right = say(load(), *TEXTS)
    engine = load()
    answers = Answers(engine)
    for id, text in enumerate(TEXTS):
        submit(engine, id, text)
    result = None
    while result is None:
        if len(answers.cached) < len(TEXTS):
            answers.step()
        # Somebody comes all the time: each step is put aside where it can be.
        result = engine.step_self_test(lambda: True)

    assert answers.end(0, 1, 2) == right
    assert result.passed


def test_a_model_that_mixes_rows_computes_one_at_a_time_from_then_on_and_every_text_is_right(
    load: Any,
) -> None:
    right = say(load(), *TEXTS)
    engine = load(Mixing)
    assert say(engine, *TEXTS) != right
    assert self_test(engine).switched_off == ["batch"]
    assert say(engine, *TEXTS) == right

    engine.tune(Tune(batch_sequences_max=8))
    assert say(engine, *TEXTS) == right


def test_what_runs_while_that_is_found_goes_on_from_its_tokens_as_it_would_alone(load: Any) -> None:
    engine = load(Mixing)
    answers = Answers(engine)
    for id, text in enumerate(TEXTS):
        submit(engine, id, text)
    while min((len(tokens) for tokens in answers.tokens.values()), default=0) < 3:
        answers.step()
    assert self_test(engine).switched_off == ["batch"]
    told = {id: list(tokens) for id, tokens in answers.tokens.items()}
    found = answers.end(0, 1, 2)
    other = load()
    for id, text in enumerate(TEXTS):
        submit(other, id, text, delivered=told[id])
    rest = Answers(other).end(0, 1, 2)

    assert found == [told[id] + rest[id] for id in range(3)]


def test_beginnings_that_are_kept_wrong_are_not_used_any_more(
    load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = say(load(), TEXTS[0])
    engine = load()

    def join(pieces: Any) -> Any:
        caches = join_pieces(pieces)
        for cache in caches:
            cache.values = mx.flip(cache.values, axis=2)
        return caches

    monkeypatch.setattr(prefixes, "join_pieces", join)
    say(engine, TEXTS[0])
    assert say(engine, TEXTS[0]) != right
    assert self_test(engine).switched_off == ["prefix_cache"]
    answers = Answers(engine)
    submit(engine, 9, TEXTS[0])

    assert answers.end(9) == right
    assert answers.cached[9] == 0


def test_guesses_that_can_not_be_taken_back_are_not_made_any_more(
    load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = say(load(lookup=False), *TEXTS)
    monkeypatch.setattr(BatchKVCache, "trim", lambda _, count: count)
    engine = load(self_test=True)

    assert engine.loaded.self_test.switched_off == ["speculation"]
    assert say(engine, *TEXTS) == right


@pytest.mark.parametrize("by", ["load", "tune"])
def test_what_an_earlier_worker_found_is_off_from_the_beginning_and_stays_so(load: Any, by: str) -> None:
    right = say(load(), *TEXTS)
    engine = load(Mixing, switched_off=["batch"] if by == "load" else [])
    if by == "tune":
        engine.tune(Tune(switched_off=["batch"]))

    assert say(engine, *TEXTS) == right
    result = self_test(engine)
    assert result.switched_off == ["batch"]
    assert {check.feature: check.outcome for check in result.checks}["speculation"] == "ok"
