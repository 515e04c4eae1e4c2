"""The batch around a model with random weights: who is computed first, and that nothing of it changes a text."""

import random
from collections.abc import Callable, Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_map
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.models.llama import Model, ModelArgs

from mlxsup.worker.engine import loading, stages
from mlxsup.worker.engine.batch import Batch
from mlxsup.worker.engine.member import Choice, Member
from mlxsup.worker.engine.parking import Parking
from mlxsup.worker.engine.quantised import CacheMaker
from mlxsup.worker.engine.sampling import greedy, make_logits_processors, make_sampler
from tests.fakes.requests import GREEDY
from tests.mlx.worker.guessing import Eager, Guesser

LAYERS = 4
CHUNK = 16
ANSWER_TOKENS = 10
TOKENS_MAX = 1000
WINDOW = 12
PROMPT_LENGTHS = (1, 2, 5, 9, 17, 40, 60)
# Rounding in other company is far below that.
MARGIN_MIN = 1e-3


def make_model(*, sliding: bool) -> nn.Module:
    """With `sliding` every other layer looks back so far only."""
    mx.random.seed(7)
    other = "sliding_attention" if sliding else "full_attention"
    model: nn.Module = Model(
        ModelArgs(
            model_type="llama",
            hidden_size=32,
            num_hidden_layers=LAYERS,
            intermediate_size=64,
            num_attention_heads=4,
            num_key_value_heads=2,
            rms_norm_eps=1e-5,
            vocab_size=97,
            layer_types=["full_attention", other] * (LAYERS // 2),
            sliding_window=WINDOW,
            tie_word_embeddings=False,
        )
    )
    # As they are drawn it would say one word for ever, whatever it was told.
    model.update(tree_map(lambda weight: weight * 3, model.parameters()))
    mx.eval(model.parameters())
    return model


@pytest.fixture(params=[False, True], ids=["whole", "sliding"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    return make_model(sliding=request.param)


@pytest.fixture(autouse=True)
def every_layer_is_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "STAGE_S", 1e-9)


def prompt(number: int) -> list[int]:
    return [
        (3 + 11 * number + 5 * at * at) % 97 for at in range(PROMPT_LENGTHS[number % len(PROMPT_LENGTHS)])
    ]


def member(model: nn.Module, id: int, *, urgency: int = 2, tokens: list[int] | None = None) -> Member:
    tokens = prompt(id) if tokens is None else tokens
    return Member(
        id=id,
        urgency=urgency,
        tokens=tokens,
        prompt_tokens=len(tokens),
        tokens_max=len(tokens) + TOKENS_MAX,
        sampler=greedy,
        processors=[],
        caches=make_prompt_cache(model),
    )


def make_batch(model: nn.Module) -> Batch:
    return Batch(model, sequences_max=8, chunk_tokens=CHUNK, widths=Eager())


def never() -> bool:
    return False


def run(batch: Batch, *members: Member, is_wanted: Callable[[], bool] = never) -> dict[int, list[int]]:
    """Until each of these has its tokens."""
    answers: dict[int, list[int]] = {each.id: [] for each in members}
    left = {each.id: each for each in members}
    for each in members:
        batch.add(each)
    while left:
        for choice in batch.step(is_wanted) or []:
            answers[choice.id].append(choice.token)
            if len(answers[choice.id]) == ANSWER_TOKENS:
                batch.remove([left.pop(choice.id)])
    return answers


def alone(model: nn.Module, id: int) -> list[int]:
    """Token by token, with nothing of ours; and no token is so near to another that rounding could decide."""
    caches = make_prompt_cache(model)
    logits = model(mx.array([prompt(id)]), cache=caches)[0, -1]
    tokens: list[int] = []
    while len(tokens) < ANSWER_TOKENS:
        order = mx.argsort(logits)
        assert (logits[order[-1]] - logits[order[-2]]).item() > MARGIN_MIN
        tokens.append(token_of(order[-1]))
        logits = model(mx.array([tokens[-1:]]), cache=caches)[0, -1]
    return tokens


def token_of(scalar: mx.array) -> int:
    token = scalar.item()
    assert isinstance(token, int)
    return token


def first_ids(batch: Batch, count: int, is_wanted: Callable[[], bool] = never) -> list[int]:
    """Who gets the next so many tokens."""
    ids: list[int] = []
    while len(ids) < count:
        ids += [choice.id for choice in batch.step(is_wanted) or []]
    return ids


def test_every_text_is_what_it_is_alone(model: nn.Module) -> None:
    members = [member(model, id) for id in range(len(PROMPT_LENGTHS))]

    answers = run(make_batch(model), *members)

    assert answers == {each.id: alone(model, each.id) for each in members}


def test_prompts_begin_by_their_urgency_and_then_their_arrival(model: nn.Module) -> None:
    batch = make_batch(model)
    for id, urgency in ((5, 3), (12, 2), (19, 0), (26, 2)):
        batch.add(member(model, id, urgency=urgency, tokens=prompt(5)))

    order: list[int] = []
    while len(order) < 4:
        order += [id for id in first_ids(batch, 1) if id not in order]
    assert order == [19, 12, 26, 5]


def test_an_urgent_prompt_goes_before_the_rest_of_a_chunk_that_has_begun(model: nn.Module) -> None:
    batch = make_batch(model)
    long, urgent = member(model, 6, urgency=3), member(model, 3, urgency=0)
    batch.add(long)
    first_ids_none = batch.step(never), batch.step(lambda: True)
    batch.add(urgent)

    assert first_ids_none == ([], None)
    assert batch.prefill_tokens == urgent.unread
    assert first_ids(batch, 1) == [3]
    assert long.unread == PROMPT_LENGTHS[6] - CHUNK
    batch.remove([urgent])
    batch.remove([long])
    assert run(batch, member(model, 6))[6] == alone(model, 6)


def test_answers_that_are_less_urgent_wait_for_an_urgent_prompt_and_lose_nothing(model: nn.Module) -> None:
    batch = make_batch(model)
    slow = [member(model, id, urgency=3) for id in (1, 2, 3)]
    told: dict[int, list[int]] = {each.id: [] for each in slow}
    for each in slow:
        batch.add(each)
    while any(len(tokens) < 3 for tokens in told.values()):
        for choice in batch.step(never) or []:
            told[choice.id].append(choice.token)
    # In the middle of a pass of all of them.
    assert batch.step(lambda: True) is None
    urgent = member(model, 5, urgency=0)
    batch.add(urgent)
    began: list[int] = []
    while not began:
        choices = batch.step(never) or []
        assert {choice.id for choice in choices} <= {5}
        began += [choice.token for choice in choices]
    while any(len(tokens) < ANSWER_TOKENS for tokens in told.values()):
        for choice in batch.step(never) or []:
            (began if choice.id == 5 else told[choice.id]).append(choice.token)

    assert {id: tokens[:ANSWER_TOKENS] for id, tokens in told.items()} == {
        each.id: alone(model, each.id) for each in slow
    }
    assert began[:ANSWER_TOKENS] == alone(model, 5)[: len(began)]


@pytest.mark.parametrize(
    ("tokens", "reads_first", "is_read"),
    [(CHUNK, True, CHUNK), (CHUNK, False, 0), (CHUNK + 1, True, 0)],
    ids=["one chunk", "does not read first", "more than a chunk"],
)
def test_who_reads_first_and_has_one_chunk_does_not_wait_for_a_token_of_answers_as_urgent(
    model: nn.Module, tokens: int, reads_first: bool, is_read: int
) -> None:
    batch = make_batch(model)
    batch.add(member(model, 1))
    assert first_ids(batch, 1) == [1]
    newcomer = member(model, 3, tokens=(prompt(6) * 9)[:tokens])
    newcomer.reads_first = reads_first
    batch.add(newcomer)

    assert batch.prefill_tokens == is_read
    assert {3, 1} == set(first_ids(batch, 9))


def test_a_prompt_that_is_less_urgent_than_an_answer_does_not_keep_it_away(model: nn.Module) -> None:
    batch = make_batch(model)
    urgent, slow = member(model, 1, urgency=0), member(model, 6, urgency=3)
    batch.add(urgent)
    assert first_ids(batch, 1) == [1]
    batch.add(slow)

    ids = first_ids(batch, 4, is_wanted=lambda: True)

    assert ids == [1, 1, 1, 1]
    assert 6 in first_ids(batch, 20)


def test_with_room_for_two_the_third_waits_and_another_bound_lets_it_in(model: nn.Module) -> None:
    batch = Batch(model, sequences_max=2, chunk_tokens=CHUNK)
    for id in (1, 2, 3):
        batch.add(member(model, id))
    assert set(first_ids(batch, 12)) == {1, 2}

    batch.sequences_max = 3
    assert set(first_ids(batch, 12)) == {1, 2, 3}


def test_a_smaller_chunk_is_taken_from_the_next_one_on(model: nn.Module) -> None:
    batch = make_batch(model)
    long = member(model, 6)
    batch.add(long)
    batch.step(never)
    batch.chunk_tokens = 5
    before = long.unread
    batch.step(never)

    assert before - long.unread == 5


def test_who_gives_way_and_goes_on_is_not_read_again(model: nn.Module) -> None:
    batch = make_batch(model)
    parking: Parking[Member] = Parking(1 << 30)
    one, other = member(model, 5), member(model, 4)
    batch.add(one)
    batch.add(other)
    told = first_ids(batch, 9)
    batch.remove([one], keeps_caches=True)
    parking.put(one)
    assert parking.bytes > 0

    one = parking.take(5) or one
    batch.add(one)
    assert batch.prefill_tokens == 0
    while told.count(5) < ANSWER_TOKENS:
        told += [choice.id for choice in batch.step(never) or []]
    assert one.tokens[PROMPT_LENGTHS[5] :][:ANSWER_TOKENS] == alone(model, 5)


def test_who_gives_way_before_anything_of_it_is_read_begins_again(model: nn.Module) -> None:
    batch = make_batch(model)
    # The one of a single token has its answer first, and the other one has joined by then.
    single, other = member(model, 0), member(model, 2)
    batch.add(single)
    batch.add(other)
    assert first_ids(batch, 1) == [0]
    batch.remove([single])
    batch.remove([other], keeps_caches=True)

    assert other.cached == 0
    assert run(batch, other)[2] == alone(model, 2)


class Whims:
    """What may happen between any two steps, drawn."""

    def __init__(self, model: nn.Module, seed: int, texts: dict[int, list[int]]) -> None:
        self._model = model
        # Without texts nothing is guessed.
        self._texts = texts
        self._rng = random.Random(seed)
        self._batch = make_batch(model)
        self._waiting = list(range(len(PROMPT_LENGTHS)))
        self._running: dict[int, Member] = {}
        self._parked: list[Member] = []
        self.answers: dict[int, list[int]] = {id: [] for id in self._waiting}

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
        urgency = self._rng.randrange(4)
        if self._waiting and (roll < 0.3 or not self._running):
            self._begin(member(self._model, self._waiting.pop(0), urgency=urgency))
        elif self._parked and (roll < 0.5 or not self._running):
            self._begin(self._parked.pop(0))
        elif roll > 0.8 and self._running:
            out = self._running.pop(self._rng.choice(list(self._running)))
            self._batch.remove([out], keeps_caches=True)
            if roll > 0.95:
                # Its cache is lost, and all is read again.
                out = member(
                    self._model, out.id, urgency=urgency, tokens=prompt(out.id) + self.answers[out.id]
                )
            self._parked.append(out)

    def _begin(self, one: Member) -> None:
        one.tokens_max = PROMPT_LENGTHS[one.id % len(PROMPT_LENGTHS)] + ANSWER_TOKENS
        if one.id in self._texts and self._rng.random() < 0.7:
            text = prompt(one.id) + self._texts[one.id]
            one.guesser = Guesser(text, wrong_one_in=self._rng.randint(2, 9))
        self._running[one.id] = one
        self._batch.add(one)


@pytest.fixture(scope="module")
def models() -> list[tuple[nn.Module, dict[int, list[int]]]]:
    kinds = [make_model(sliding=sliding) for sliding in (False, True)]
    return [(model, {id: alone(model, id) for id in range(len(PROMPT_LENGTHS))}) for model in kinds]


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), kind=st.sampled_from([0, 1]), guesses=st.booleans())
def test_no_order_of_arrivals_interruptions_giving_way_and_guesses_changes_a_text(
    models: list[tuple[nn.Module, dict[int, list[int]]]], seed: int, kind: int, guesses: bool
) -> None:
    model, texts = models[kind]
    whims = Whims(model, seed, texts if guesses else {})

    whims.play()

    assert whims.answers == texts


def test_sampling_and_penalties_are_those_of_the_position_after_giving_way(model: nn.Module) -> None:
    from msgspec.structs import replace

    sampling = replace(GREEDY, temperature=1.0, seed=5, repetition_penalty=1.3, presence_penalty=0.5)

    def drawn(id: int, tokens: list[int], old: Member | None = None) -> Member:
        return Member(
            id=id,
            urgency=2,
            tokens=tokens,
            prompt_tokens=len(prompt(id)),
            tokens_max=len(prompt(id)) + TOKENS_MAX,
            sampler=make_sampler(sampling, 97),
            processors=make_logits_processors(sampling, len(prompt(id))),
            caches=make_prompt_cache(model) if old is None else old.caches,
            cached=0 if old is None else old.cached,
            chosen=None if old is None else old.chosen,
        )

    whole = run(make_batch(model), drawn(5, prompt(5)))[5]
    batch = make_batch(model)
    first = drawn(5, prompt(5))
    batch.add(first)
    first_ids(batch, 4)
    batch.remove([first], keeps_caches=True)
    told = first.tokens[len(prompt(5)) :]
    rest = run(batch, drawn(5, list(first.tokens), first))[5]

    assert (told + rest)[:ANSWER_TOKENS] == whole


def test_a_token_takes_in_the_cache_what_the_shape_of_the_model_says(model: nn.Module) -> None:
    # Keys and values of two heads of eight dimensions, in each layer.
    assert loading.kv_bytes_per_token(model, CacheMaker(model, None)) == LAYERS * 2 * 2 * 8 * 4


class Refusing:
    """A lease that is granted when the test says so."""

    def __init__(self) -> None:
        self.granted = False
        self.asked: list[tuple[int, int]] = []
        self.ended = 0

    def allows(self, _: int) -> bool:
        return self.granted

    def ask(self, tokens: int, urgency: int) -> None:
        self.asked.append((tokens, urgency))

    def over(self) -> None:
        self.ended += 1


def test_answers_go_on_while_a_prompt_waits_for_its_turn_also_an_urgent_one(model: nn.Module) -> None:
    batch, lease = make_batch(model), Refusing()
    batch.add(member(model, 3, urgency=3))
    told = first_ids(batch, 1)
    batch.lease = lease
    batch.add(member(model, 6, urgency=0))
    told += first_ids(batch, 4)

    assert told == [3] * 5
    assert lease.asked[0] == (CHUNK, 0)
    assert batch.prefill_tokens == 0

    lease.granted = True
    chunks = -(-(PROMPT_LENGTHS[6] - 1) // CHUNK)
    assert first_ids(batch, 1) == [6]
    assert lease.ended == chunks


def test_with_nothing_but_a_prompt_that_waits_a_step_gives_nothing(model: nn.Module) -> None:
    batch = make_batch(model)
    batch.lease = Refusing()
    one = member(model, 6)
    batch.add(one)

    assert batch.step(never) == []
    batch.remove([one])
    assert batch.lease.ended == 1


@pytest.mark.parametrize("wrong_one_in", [1, 2, 1000])
def test_guesses_change_no_text_and_right_ones_save_passes(wrong_one_in: int) -> None:
    model = make_model(sliding=False)
    members = [member(model, id) for id in (5, 12)]
    texts = {each.id: alone(model, each.id) for each in members}
    for each in members:
        each.guesser = Guesser(prompt(each.id) + texts[each.id], wrong_one_in)
        each.tokens_max = each.prompt_tokens + ANSWER_TOKENS
    steps = 0

    def count() -> bool:
        nonlocal steps
        steps += 1
        return False

    assert run(make_batch(model), *members, is_wanted=count) == texts
    plain_steps, steps = steps, 0
    run(make_batch(model), *[member(model, id) for id in (5, 12)], is_wanted=count)
    assert (plain_steps < steps) == (wrong_one_in > 1)


class Forced:
    """What may be said is known up to the end."""

    def __init__(self, text: list[int]) -> None:
        self._text = text
        self._said = 0

    def allowed(self, tokens_left: int) -> npt.NDArray[np.uint32]:
        assert tokens_left > 0
        bits = np.zeros(4, dtype=np.uint32)
        token = self._text[self._said]
        bits[token // 32] |= np.uint32(1 << token % 32)
        return bits

    def forced(self) -> list[int]:
        return self._text[self._said : self._said + 4]

    def accept(self, tokens: Sequence[int]) -> None:
        assert list(tokens) == self._text[self._said : self._said + len(tokens)]
        self._said += len(tokens)


def test_forced_tokens_come_whatever_the_model_would_say_and_the_others_say_what_they_say_alone(
    model: nn.Module,
) -> None:
    said = [(7 * at) % 97 for at in range(1, 40)]
    bound, free = member(model, 5), member(model, 12)
    bound.constraint = Forced(said)
    bound.tokens_max = bound.prompt_tokens + ANSWER_TOKENS

    answers = run(make_batch(model), bound, free)

    assert answers == {5: said[:ANSWER_TOKENS], 12: alone(model, 12)}


def test_chances_are_those_of_the_model_alone_whatever_bends_the_choice(model: nn.Module) -> None:
    batch = make_batch(model)
    one = member(model, 5)
    one.processors = [lambda _, logits: logits - 1000.0 * (mx.arange(logits.shape[-1]) == said[0])]
    one.logprobs = 3
    said = alone(model, 5)
    batch.add(one)
    choices: list[Choice] = []
    while not choices:
        choices = batch.step(never) or []

    logits = model(mx.array([prompt(5)]))[0, -1]
    logprobs = logits - mx.logsumexp(logits)
    (choice,) = choices
    assert choice.chances is not None
    assert choice.token != said[0]
    assert token_of(choice.chances.top_tokens[0]) == said[0]
    assert mx.allclose(choice.chances.chosen, logprobs[choice.token], atol=1e-4).item()
    assert mx.allclose(choice.chances.top, mx.sort(logprobs)[::-1][:3], atol=1e-4).item()
