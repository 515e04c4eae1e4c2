"""Long prompts are read in chunks: short ones go between them, streams go on, and no long one is kept for ever."""

import mlx.nn as nn
import pytest

from mlxsup.worker.engine import stages
from mlxsup.worker.engine.batch import Batch
from tests.mlx.prefixes.models import ANSWER_TOKENS, VOCABULARY, alone, make_model, member
from tests.mlx.prefixes.playing import never, open_batch, open_prefixes

CHUNK = 32
LONG = [(3 + 5 * at * at) % VOCABULARY for at in range(200)]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return make_model("plain")


@pytest.fixture
def batch(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> Batch:
    monkeypatch.setattr(stages, "STAGE_S", 1e-9)
    return open_batch(model, open_prefixes(model, 0), chunk_tokens=CHUNK)


def ids_of(batch: Batch, steps: int) -> list[int]:
    return [choice.id for _ in range(steps) for choice in batch.step(never) or []]


def test_a_short_prompt_that_comes_behind_a_long_one_is_read_before_the_rest_of_it(
    model: nn.Module, batch: Batch
) -> None:
    long, short = member(model, 1, LONG), member(model, 2, [5, 6, 7])
    batch.add(long)
    batch.step(never)
    batch.add(short)

    assert batch.prefill_tokens == 3
    assert ids_of(batch, 1) == [2]
    assert long.cached == CHUNK


def test_it_does_not_even_wait_for_the_chunk_that_has_begun(model: nn.Module, batch: Batch) -> None:
    long, short = member(model, 1, LONG), member(model, 2, [5, 6, 7])
    batch.add(long)
    batch.step(never)
    assert batch.step(lambda: True) is None
    batch.add(short)

    assert ids_of(batch, 1) == [2]
    assert long.cached == CHUNK
    batch.remove([short])
    while len(long.tokens) - long.prompt_tokens < ANSWER_TOKENS:
        batch.step(never)
    assert long.tokens[200:][:ANSWER_TOKENS] == alone(model, LONG)


def test_however_many_short_ones_come_every_second_chunk_is_of_the_long_one(
    model: nn.Module, batch: Batch
) -> None:
    long = member(model, 1, LONG)
    batch.add(long)
    batch.step(never)
    read = []
    for number in range(2, 8):
        short = member(model, number, [number, 5, 6])
        batch.add(short)
        before = long.cached
        while not ids_of(batch, 1):
            pass
        batch.remove([short])
        read.append(long.cached - before)

    # The first one finds it before its next chunk; of the others each lets one go first.
    assert read == [0] + [CHUNK] * 5


def test_of_two_long_ones_the_one_that_has_less_left_is_done_first(model: nn.Module, batch: Batch) -> None:
    batch.add(member(model, 1, LONG))
    batch.step(never)
    batch.add(member(model, 2, LONG[50:150]))

    ids: list[int] = []
    while len(set(ids)) < 2:
        ids += ids_of(batch, 1)
    assert ids[0] == 2


def test_a_stream_has_a_token_between_any_two_chunks(model: nn.Module, batch: Batch) -> None:
    batch.add(member(model, 1, [5, 6, 7]))
    assert ids_of(batch, 1) == [1]
    long = member(model, 2, LONG)
    batch.add(long)

    while long.unread > 1:
        before = long.cached
        while long.cached == before:
            ids = ids_of(batch, 1)
        assert 1 in ids_of(batch, 1) + ids


def test_chunks_are_as_long_as_the_time_that_is_aimed_at_allows_and_half_the_bound_halves_it(
    model: nn.Module,
) -> None:
    batch = open_batch(model, open_prefixes(model, 0), chunk_tokens=2048, target_s=1e-7)
    long = member(model, 1, LONG)
    batch.add(long)
    assert batch.prefill_tokens == 32
    batch.step(never)
    assert batch.prefill_tokens == 16

    patient = open_batch(model, open_prefixes(model, 0), chunk_tokens=2048, target_s=1e6)
    patient.add(member(model, 1, LONG))
    patient.step(never)
    assert patient.prefill_tokens == 168
    patient.chunk_tokens = 64
    assert patient.prefill_tokens == 64


def test_who_comes_first_waits_for_a_token_of_the_answers_where_they_would_pause_too_long(
    model: nn.Module,
) -> None:
    batch = open_batch(model, open_prefixes(model, 0), chunk_tokens=2048, target_s=1e-7)
    batch.add(member(model, 1, [5, 6, 7]))
    while ids_of(batch, 1) != [1]:
        pass
    newcomer = member(model, 2, [8, 9])
    batch.add(newcomer)

    ids: list[list[int]] = []
    while not any(2 in each for each in ids):
        ids.append(ids_of(batch, 1))
    assert [1] in ids[:-1]
    assert ids[-2:] == [[1], [2]]
    assert newcomer.tokens[2:] == (alone(model, [8, 9]) or [])[:1]


def test_who_is_about_to_begin_can_give_way_and_go_on(model: nn.Module) -> None:
    batch = open_batch(model, open_prefixes(model, 0), chunk_tokens=2048, target_s=1e-7)
    batch.add(member(model, 1, [5, 6, 7]))
    while ids_of(batch, 1) != [1]:
        pass
    newcomer = member(model, 2, [8, 9])
    batch.add(newcomer)
    while newcomer.unread > 1:
        batch.step(never)
    batch.remove([newcomer], keeps_caches=True)
    assert 2 not in ids_of(batch, 3)

    batch.add(newcomer)
    while len(newcomer.tokens) - 2 < ANSWER_TOKENS:
        batch.step(never)
    assert newcomer.tokens[2:] == alone(model, [8, 9])
