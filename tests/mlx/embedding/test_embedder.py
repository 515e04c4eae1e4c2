"""Embeddings of a model with random weights: what each is, in whatever company, and who is read first."""

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxsup.protocol.errors import ErrorKind
from mlxsup.protocol.worker_link import Embed
from mlxsup.worker.engine import stages
from mlxsup.worker.engine.embedding.embedder import Embedder, Job
from mlxsup.worker.engine.embedding.pooling import Pooling
from tests.mlx.embedding.models import DIMENSIONS, make_model, make_trunk, text

NEAR = 1e-5
LENGTHS = (1, 2, 5, 9, 17, 40, 60)
MODELS = {sliding: make_model(sliding=sliding) for sliding in (False, True)}


@pytest.fixture(autouse=True)
def every_layer_is_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "STAGE_S", 1e-9)


def job(id: int, texts: list[list[int]], *, urgency: int = 2, normalize: bool = False) -> Job:
    order = Embed(texts=["x"] * len(texts), normalize=normalize, urgency=urgency)
    return Job(id, order, texts, False)


def run(embedder: Embedder, chunk_tokens: int, is_wanted: Callable[[], bool] = lambda: False) -> list[Job]:
    """In the order in which they are over."""
    over: list[Job] = []
    while embedder.turn is not None:
        over += embedder.step(chunk_tokens, is_wanted) or []
    return over


def vectors(done: Job) -> npt.NDArray[np.float64]:
    assert done.error is None
    return np.array([msgspec.json.decode(done.vectors[place]) for place in range(len(done.texts))])


def plain(model: nn.Module, tokens: list[int], pooling: Pooling) -> npt.NDArray[np.float64]:
    """By the model's own pass over the whole text, without a cache."""
    hidden = np.array(model.model(mx.array([tokens])))[0].astype(np.float64)
    vectors: dict[Pooling, npt.NDArray[np.float64]] = {
        Pooling.MEAN: hidden.mean(axis=0),
        Pooling.LAST: hidden[-1],
        Pooling.FIRST: hidden[0],
    }
    return vectors[pooling]


@pytest.mark.parametrize("pooling", Pooling)
@pytest.mark.parametrize("sliding", [False, True])
def test_an_embedding_is_what_the_hidden_states_of_its_text_make(sliding: bool, pooling: Pooling) -> None:
    model = MODELS[sliding]
    texts = [text(number, length) for number, length in enumerate(LENGTHS)]
    embedder = Embedder(make_trunk(model), pooling)
    embedder.add(job(1, texts))
    (done,) = run(embedder, 16)

    assert embedder.dimensions == DIMENSIONS
    for found, tokens in zip(vectors(done), texts, strict=True):
        assert found == pytest.approx(plain(model, tokens, pooling), abs=NEAR)


@settings(max_examples=40, deadline=None)
@given(
    jobs=st.lists(st.lists(st.sampled_from(LENGTHS), min_size=1, max_size=6), min_size=1, max_size=4),
    chunk_tokens=st.sampled_from([16, 40, 200]),
    sliding=st.booleans(),
    pauses=st.integers(1, 7),
)
def test_company_and_pauses_change_nothing(
    jobs: list[list[int]], chunk_tokens: int, sliding: bool, pauses: int
) -> None:
    trunk = make_trunk(MODELS[sliding])
    texts = {id: [text(id + at, length) for at, length in enumerate(each)] for id, each in enumerate(jobs)}
    alone = {}
    for id, each in texts.items():
        for place, tokens in enumerate(each):
            single = Embedder(trunk, Pooling.MEAN)
            single.add(job(0, [tokens], normalize=True))
            (done,) = run(single, 1000)
            alone[id, place] = vectors(done)[0]

    together = Embedder(trunk, Pooling.MEAN)
    for id, each in texts.items():
        together.add(job(id, each, normalize=True))
    looks = iter(range(1 << 30))
    over = run(together, chunk_tokens, lambda: next(looks) % pauses == 0)

    assert sorted(done.id for done in over) == sorted(texts)
    for done in over:
        for place, found in enumerate(vectors(done)):
            assert found == pytest.approx(alone[done.id, place], abs=NEAR)
            assert np.linalg.norm(found) == pytest.approx(1.0, abs=1e-6)


def test_the_more_urgent_goes_first_and_equals_take_turns() -> None:
    embedder = Embedder(make_trunk(MODELS[False]), Pooling.MEAN)
    long, short = [text(at, 40) for at in range(6)], [text(9, 40)]
    embedder.add(job(1, long))
    embedder.add(job(2, short))
    embedder.add(job(3, long, urgency=3))
    embedder.add(job(4, long, urgency=0))

    assert [done.id for done in run(embedder, 40)] == [4, 2, 1, 3]


def test_one_that_leaves_takes_its_texts_along_and_the_others_are_read_all_the_same() -> None:
    embedder = Embedder(make_trunk(MODELS[False]), Pooling.MEAN)
    leaving, staying = job(1, [text(1, 9), text(2, 60)]), job(2, [text(3, 9)])
    embedder.add(leaving)
    embedder.add(staying)
    # In the middle of its longer text.
    assert embedder.step(16, lambda: False) == []
    embedder.remove(leaving)

    assert [done.id for done in run(embedder, 16)] == [2]
    assert vectors(staying)[0] == pytest.approx(plain(MODELS[False], text(3, 9), Pooling.MEAN), abs=NEAR)


def test_one_that_comes_again_goes_on_with_what_is_missing() -> None:
    embedder = Embedder(make_trunk(MODELS[False]), Pooling.MEAN)
    first = job(1, [text(at, 40) for at in range(4)])
    embedder.add(first)
    embedder.step(40, lambda: False)
    embedder.remove(first)
    again = Job(1, first.order, first.texts, False, first.vectors)
    embedder.add(again)
    steps = 0
    while embedder.turn is not None:
        embedder.step(40, lambda: False)
        steps += 1

    assert steps == 3
    assert vectors(again)[3] == pytest.approx(plain(MODELS[False], text(3, 40), Pooling.MEAN), abs=NEAR)


def test_a_model_that_gives_no_numbers_answers_with_an_error() -> None:
    model = make_model()
    model.model.norm.weight = model.model.norm.weight * float("nan")
    embedder = Embedder(make_trunk(model), Pooling.MEAN)
    embedder.add(job(1, [text(1, 5)]))
    (done,) = run(embedder, 16)

    assert done.error is not None
    assert done.error.kind is ErrorKind.INTERNAL
    assert done.error.data.path == "$.input[0]"
