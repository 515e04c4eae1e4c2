"""What was computed of a text is used by the next one that begins like it, and nobody can tell from what it says."""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from msgspec.structs import replace

from mlxsup.worker.engine.member import Member
from mlxsup.worker.engine.prefixes.caches import is_cuttable
from mlxsup.worker.engine.prefixes.disk import Disk
from mlxsup.worker.engine.prefixes.prefixes import Prefixes
from mlxsup.worker.engine.sampling import make_sampler
from tests.fakes.requests import GREEDY
from tests.mlx.prefixes.models import KINDS, VOCABULARY, alone, make_model, member
from tests.mlx.prefixes.playing import computed, never, open_batch, open_prefixes, run

WAIT_S = 20.0
BEGINNING = [(3 + 5 * at * at) % VOCABULARY for at in range(100)]
NAMED_OF_NO_TEXT = "another adapter"


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return make_model(request.param)


@pytest.fixture
def plain() -> nn.Module:
    return make_model("plain")


def with_end(*end: int) -> list[int]:
    return [*BEGINNING, *end]


def the_text(model: nn.Module, prompt: list[int]) -> list[int]:
    """Of this prompt, and rounding does not decide it."""
    text = alone(model, prompt)
    assert text is not None
    return text


def test_the_next_turn_of_a_conversation_computes_its_own_tokens_only(model: nn.Module) -> None:
    batch = open_batch(model, open_prefixes(model))
    first = member(model, 1, with_end(8))
    (said,) = run(batch, first)
    prompt = [*with_end(8), *said, 5, 6, 7]
    second = member(model, 2, prompt)

    assert run(batch, second) == [the_text(model, prompt)]
    assert computed(first, second) == [101, 3]


def test_the_same_prompt_again_computes_its_last_tokens_only(model: nn.Module) -> None:
    batch = open_batch(model, open_prefixes(model))
    once, again = member(model, 1, with_end(8)), member(model, 2, with_end(8))

    assert run(batch, once) == run(batch, again) == [the_text(model, with_end(8))]
    assert computed(again) == [1]


def test_what_begins_alike_goes_on_from_where_it_differs_if_caches_can_be_cut(plain: nn.Module) -> None:
    batch = open_batch(plain, open_prefixes(plain))
    run(batch, member(plain, 1, with_end(*range(20, 40))))
    other = member(plain, 2, with_end(*range(50, 60)))

    assert run(batch, other) == [the_text(plain, with_end(*range(50, 60)))]
    assert computed(other) == [10]


@pytest.mark.parametrize("kind", ["sliding", "hybrid"])
def test_what_can_not_be_cut_is_not_used_by_what_differs(kind: str) -> None:
    model = make_model(kind)
    batch = open_batch(model, open_prefixes(model))
    run(batch, member(model, 1, with_end(*range(20, 40))))
    other = member(model, 2, with_end(*range(50, 60)))

    assert run(batch, other) == [the_text(model, with_end(*range(50, 60)))]
    assert computed(other) == [110]


def test_one_that_is_kept_is_not_changed_by_those_that_go_on_from_it(model: nn.Module) -> None:
    batch = open_batch(model, open_prefixes(model))
    run(batch, member(model, 1, BEGINNING))
    prompts = [with_end(*range(number, number + number % 5 + 1)) for number in range(2, 12)]

    for _ in range(2):
        members = [member(model, 10 + number, prompt) for number, prompt in enumerate(prompts)]
        assert run(batch, *members) == [the_text(model, prompt) for prompt in prompts]
        # All but what is behind the beginning, or the last token of what was there already.
        assert all(tokens <= 6 for tokens in computed(*members))


def test_a_hit_joins_others_that_are_read_and_that_decode(model: nn.Module) -> None:
    batch = open_batch(model, open_prefixes(model))
    run(batch, member(model, 1, BEGINNING))
    others = [member(model, 20 + number, [number, 5, 9, *BEGINNING[: 7 * number]]) for number in range(2, 6)]
    for other in others[:2]:
        batch.add(other)
    while not batch.step(never):
        pass
    hit = member(model, 2, with_end(8, 9))

    said = run(batch, hit, *others[2:])
    assert said[0] == the_text(model, with_end(8, 9))
    assert said[1:] == [the_text(model, other.tokens[: other.prompt_tokens]) for other in others[2:]]
    # In full, or up to the last token of its prompt.
    assert computed(hit) == [2 if is_cuttable(model) else 3]


def test_a_sampled_text_is_the_same_from_what_is_kept(model: nn.Module) -> None:
    sampler = make_sampler(replace(GREEDY, temperature=0.8, seed=11), VOCABULARY)
    cold = run(open_batch(model, open_prefixes(model, 0)), member(model, 1, with_end(8), sampler=sampler))
    batch = open_batch(model, open_prefixes(model))
    run(batch, member(model, 1, BEGINNING))
    warm = member(model, 2, with_end(8), sampler=sampler)

    assert run(batch, warm) == cold
    assert computed(warm) == [1 if is_cuttable(model) else 2]


@pytest.mark.parametrize("key", [NAMED_OF_NO_TEXT, None])
def test_what_has_another_key_or_none_shares_with_nobody(plain: nn.Module, key: str | None) -> None:
    prefixes = open_prefixes(plain)
    batch = open_batch(plain, prefixes)
    run(batch, member(plain, 1, BEGINNING))
    other = member(plain, 2, with_end(8), cache_key=key)
    before = prefixes.bytes
    run(batch, other)

    assert computed(other) == [101]
    assert (prefixes.bytes > before) == (key is not None)


def test_no_more_is_kept_than_is_allowed(model: nn.Module) -> None:
    whole = open_prefixes(model)
    run(open_batch(model, whole), member(model, 1, BEGINNING))
    prefixes = open_prefixes(model, 2 * whole.bytes)
    batch = open_batch(model, prefixes)
    for number in range(6):
        run(batch, member(model, number, [number, *BEGINNING]))
        assert prefixes.bytes <= 2 * whole.bytes
    last, first = member(model, 8, [5, *BEGINNING]), member(model, 9, [0, *BEGINNING])
    run(batch, last)
    run(batch, first)

    assert computed(last, first) == [1, 101]


def test_what_was_read_of_one_that_is_cancelled_is_not_read_again(plain: nn.Module) -> None:
    batch = open_batch(plain, open_prefixes(plain), chunk_tokens=32)
    first = member(plain, 1, BEGINNING)
    batch.add(first)
    batch.step(never)
    batch.remove([first])
    again = member(plain, 2, BEGINNING)

    assert run(batch, again) == [the_text(plain, BEGINNING)]
    assert computed(again) == [100 - 32]


def test_what_is_kept_is_no_view_of_the_batch_that_it_was_cut_from(plain: nn.Module) -> None:
    prefixes = open_prefixes(plain)
    batch = open_batch(plain, prefixes)
    run(batch, member(plain, 1, BEGINNING))
    batch.rest(never)
    mx.clear_cache()
    before = mx.get_active_memory()
    for number in range(2, 10):
        run(batch, member(plain, number, [number, *BEGINNING]))
    batch.rest(never)
    mx.clear_cache()

    # Nine texts of 105 tokens; a batch's caches have room for 256.
    kept = prefixes.bytes * 8 / 9
    assert mx.get_active_memory() - before < 1.3 * kept


# On the disk.


def open_disk(folder: Path) -> Disk:
    return Disk(folder, "this model", 1 << 30)


def from_disk(model: nn.Module, prefixes: Prefixes, one: Member) -> list[list[int]]:
    found = prefixes.find(one.cache_key, one.tokens)
    if found is not None:
        prefixes.admit(found)
    return run(open_batch(model, prefixes), one)


def test_a_conversation_goes_on_in_the_next_worker_from_what_the_last_one_wrote(
    model: nn.Module, tmp_path: Path
) -> None:
    disk = open_disk(tmp_path)
    batch = open_batch(model, open_prefixes(model, disk=disk))
    (said,) = run(batch, member(model, 1, with_end(8), is_lasting=True))
    second = [*with_end(8), *said, *range(10, 40)]
    (more,) = run(batch, member(model, 2, second, is_lasting=True))
    batch.rest(never)
    assert disk.wait(WAIT_S)
    third = [*second, *more, 5, 6, 7]
    goes_on = member(model, 3, third)

    assert from_disk(model, open_prefixes(model, disk=open_disk(tmp_path)), goes_on) == [
        the_text(model, third)
    ]
    assert computed(goes_on) == [3]


def test_a_text_that_nobody_asks_for_again_is_not_written_and_one_that_is_used_again_is(
    model: nn.Module, tmp_path: Path
) -> None:
    disk = open_disk(tmp_path)
    prefixes = open_prefixes(model, disk=disk)
    batch = open_batch(model, prefixes)
    run(batch, member(model, 1, BEGINNING))
    batch.rest(never)
    assert disk.wait(WAIT_S)
    assert disk.bytes == 0

    run(batch, member(model, 2, with_end(8)))
    batch.rest(never)
    assert disk.wait(WAIT_S)
    assert disk.bytes > 0


def test_a_file_that_is_damaged_is_computed_again(model: nn.Module, tmp_path: Path) -> None:
    disk = open_disk(tmp_path)
    batch = open_batch(model, open_prefixes(model, disk=disk))
    run(batch, member(model, 1, BEGINNING, is_lasting=True))
    batch.rest(never)
    assert disk.wait(WAIT_S)
    next_disk = open_disk(tmp_path)
    for path in tmp_path.iterdir():
        content = bytearray(path.read_bytes())
        content[-7] ^= 1
        path.write_bytes(content)
    one = member(model, 2, with_end(8))

    assert from_disk(model, open_prefixes(model, disk=next_disk), one) == [the_text(model, with_end(8))]
    assert computed(one) == [101]


def test_what_is_in_memory_is_not_read_from_the_disk(model: nn.Module, tmp_path: Path) -> None:
    disk = open_disk(tmp_path)
    prefixes = open_prefixes(model, disk=disk)
    batch = open_batch(model, prefixes)
    run(batch, member(model, 1, BEGINNING, is_lasting=True))
    batch.rest(never)
    assert disk.wait(WAIT_S)

    assert prefixes.find("", BEGINNING) is None
    assert open_prefixes(model, disk=disk).find("", BEGINNING) is not None
