"""Of sequences that come together and begin alike one reads the beginning, whatever becomes of it."""

import random

import mlx.nn as nn
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxsup.worker.engine import stages
from mlxsup.worker.engine.batch import Batch
from mlxsup.worker.engine.member import Member
from tests.mlx.prefixes.models import ANSWER_TOKENS, KINDS, VOCABULARY, alone, make_model, member
from tests.mlx.prefixes.playing import computed, never, open_batch, open_prefixes, run

SHARED = [(3 + 5 * at * at) % VOCABULARY for at in range(200)]
PROMPT_TOKENS = len(SHARED) + 2


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return make_model(request.param)


@pytest.fixture(autouse=True)
def every_layer_is_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "STAGE_S", 1e-9)


def alike(model: nn.Module, count: int, **terms: int) -> list[Member]:
    """Each with two tokens of its own."""
    return [member(model, number, [*SHARED, number, number + 1], **terms) for number in range(count)]


def texts(model: nn.Module, members: list[Member]) -> list[list[int] | None]:
    return [alone(model, one.tokens[: one.prompt_tokens]) for one in members]


def read(batch: Batch, leader: Member, tokens: int) -> None:
    """Until it has so many tokens at least."""
    while leader.cached < tokens:
        batch.step(never)


def test_the_beginning_is_computed_once(model: nn.Module) -> None:
    members = alike(model, 12)

    assert run(open_batch(model, open_prefixes(model)), *members) == texts(model, members)
    assert computed(*members) == [PROMPT_TOKENS] + [2] * 11


def test_the_same_prompt_many_times_is_computed_once(model: nn.Module) -> None:
    members = [member(model, number, SHARED) for number in range(6)]

    run(open_batch(model, open_prefixes(model)), *members)
    assert computed(*members) == [len(SHARED)] + [1] * 5


def test_without_room_for_what_is_kept_each_computes_its_own(model: nn.Module) -> None:
    members = alike(model, 3)

    assert run(open_batch(model, open_prefixes(model, 0)), *members) == texts(model, members)
    assert computed(*members) == [PROMPT_TOKENS] * 3


def test_when_the_one_that_reads_is_cancelled_the_next_one_goes_on_from_there() -> None:
    model = make_model("plain")
    batch = open_batch(model, open_prefixes(model))
    first, *others = alike(model, 4)
    for one in (first, *others):
        batch.add(one)
    read(batch, first, 64)
    batch.remove([first])

    assert run(batch) == []
    while any(len(one.tokens) - one.prompt_tokens < ANSWER_TOKENS for one in others):
        batch.step(never)
    assert [one.tokens[one.prompt_tokens :][:ANSWER_TOKENS] for one in others] == texts(model, others)
    assert computed(*others) == [PROMPT_TOKENS - 64, 2, 2]


def test_when_the_one_that_reads_is_cancelled_in_the_middle_of_a_pass_nothing_is_lost(
    model: nn.Module,
) -> None:
    batch = open_batch(model, open_prefixes(model))
    first, *others = alike(model, 3)
    for one in (first, *others):
        batch.add(one)
    read(batch, first, 64)
    assert batch.step(lambda: True) is None
    batch.remove([first])
    while any(len(one.tokens) - one.prompt_tokens < ANSWER_TOKENS for one in others):
        batch.step(never)

    assert [one.tokens[one.prompt_tokens :][:ANSWER_TOKENS] for one in others] == texts(model, others)
    assert computed(*others) == [PROMPT_TOKENS - 128, 2]


def test_one_that_waits_and_is_cancelled_is_gone_and_the_others_have_their_texts(model: nn.Module) -> None:
    batch = open_batch(model, open_prefixes(model))
    first, gone, last = alike(model, 3)
    batch.add(first)
    batch.add(gone)
    read(batch, first, 64)
    batch.remove([gone])

    assert run(batch, last) == texts(model, [last])
    assert computed(last) == [2]


def test_who_is_more_urgent_does_not_wait_for_who_is_less(model: nn.Module) -> None:
    batch = open_batch(model, open_prefixes(model))
    slow, urgent = member(model, 1, SHARED, urgency=3), member(model, 2, [*SHARED, 5], urgency=0)
    batch.add(slow)
    batch.step(never)
    batch.add(urgent)

    ids: list[int] = []
    while not ids:
        ids = [choice.id for choice in batch.step(never) or []]
    assert ids == [2]
    assert slow.unread > 0


def test_who_is_less_urgent_and_waits_goes_on_from_what_the_urgent_one_has_read(model: nn.Module) -> None:
    batch = open_batch(model, open_prefixes(model))
    slow, urgent = member(model, 1, [*SHARED, 4], urgency=3), member(model, 2, [*SHARED, 5], urgency=0)
    batch.add(slow)
    batch.add(urgent)
    while len(slow.tokens) - slow.prompt_tokens < ANSWER_TOKENS:
        batch.step(never)

    assert computed(slow, urgent) == [1, len(SHARED) + 1]


def test_one_that_comes_while_the_beginning_is_read_does_not_read_it_again() -> None:
    model = make_model("plain")
    batch = open_batch(model, open_prefixes(model), chunk_tokens=32)
    first, late = alike(model, 2)
    batch.add(first)
    read(batch, first, 96)
    batch.add(late)

    while len(late.tokens) - late.prompt_tokens < ANSWER_TOKENS:
        batch.step(never)
    assert [late.tokens[PROMPT_TOKENS:][:ANSWER_TOKENS]] == texts(model, [late])
    assert computed(late) == [2]


PROMPTS = [
    *(
        [*SHARED[:cut], number, 7 * number % VOCABULARY]
        for number, cut in enumerate((200, 200, 130, 130, 70, 66))
    ),
    [5, 6, 7],
    [9],
    [*reversed(SHARED)],
]


class Whims:
    """What may happen between any two steps, drawn: sequences come, are put aside, give way and are cancelled."""

    def __init__(self, model: nn.Module, prompts: list[list[int]], seed: int) -> None:
        self._model = model
        self._rng = random.Random(seed)
        room = self._rng.choice([0, 1 << 16, 1 << 30])
        self._batch = open_batch(
            model, open_prefixes(model, room), chunk_tokens=self._rng.choice([16, 48, 200])
        )
        self._waiting = [member(model, id, prompt) for id, prompt in enumerate(prompts)]
        self._rng.shuffle(self._waiting)
        self._running: dict[int, Member] = {}
        self._parked: list[Member] = []
        self.answers: dict[int, list[int]] = {one.id: [] for one in self._waiting}

    def play(self) -> None:
        while self._waiting or self._running or self._parked:
            self._disturb()
            if not self._running:
                continue
            for choice in self._batch.step(lambda: self._rng.random() < 0.3) or []:
                self.answers[choice.id].append(choice.token)
                if len(self.answers[choice.id]) == ANSWER_TOKENS:
                    self._batch.remove([self._running.pop(choice.id)])

    def _disturb(self) -> None:
        roll = self._rng.random()
        if self._waiting and (roll < 0.4 or not self._running):
            self._begin(self._waiting.pop())
        elif self._parked and (roll < 0.5 or not self._running):
            self._begin(self._parked.pop(0))
        elif roll > 0.8 and self._running:
            out = self._running.pop(self._rng.choice(list(self._running)))
            self._batch.remove([out], keeps_caches=roll < 0.95)
            if roll >= 0.95:
                # It is cancelled, and asked for again with what it had.
                out = member(self._model, out.id, list(out.tokens))
            self._parked.append(out)

    def _begin(self, one: Member) -> None:
        one.urgency = self._rng.randrange(4)
        self._running[one.id] = one
        self._batch.add(one)


class Known:
    """A model, and prompts whose texts rounding does not decide, with these texts."""

    def __init__(self, kind: str) -> None:
        self.model = make_model(kind)
        known = [(prompt, text) for prompt in PROMPTS if (text := alone(self.model, prompt)) is not None]
        assert len(known) > len(PROMPTS) - 3
        self.prompts = [prompt for prompt, _ in known]
        self.texts = dict(enumerate(text for _, text in known))


@pytest.fixture(scope="module")
def known() -> dict[str, Known]:
    return {kind: Known(kind) for kind in KINDS}


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(KINDS))
def test_no_order_of_arrivals_interruptions_and_ends_changes_a_text(
    known: dict[str, Known], seed: int, kind: str
) -> None:
    whims = Whims(known[kind].model, known[kind].prompts, seed)

    whims.play()

    assert whims.answers == known[kind].texts
