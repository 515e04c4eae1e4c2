"""What the whole scheduler makes of loads beyond capacity, before an engine on a simulated clock."""

import random
from collections.abc import Callable, Iterator

import pytest

from mlxsup.config.schema import Model, Scheduling
from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import Priority
from tests.unit.scheduling.simulated_load import Arrival, Engine, Fate, Run

# Each plays minutes of load.
pytestmark = pytest.mark.slow

MODEL = Model(batch_sequences_max=16, queue_requests_max=64)
# What the engine completes of such requests, with a full batch.
CAPACITY_PER_S = 5.2
LOAD_S = 90.0

Draw = Callable[[random.Random, float], Arrival]


def poisson(rate_per_s: float, seed: int, draw: Draw, seconds: float = LOAD_S) -> Iterator[Arrival]:
    chance = random.Random(seed)
    at_s = chance.expovariate(rate_per_s)
    while at_s < seconds:
        yield draw(chance, at_s)
        at_s += chance.expovariate(rate_per_s)


def usual(deadline_s: float | None = None, client: str = "c", tier: Priority = Priority.NORMAL) -> Draw:
    def draw(chance: random.Random, at_s: float) -> Arrival:
        return Arrival(
            at_s=at_s,
            prompt_tokens=chance.randrange(20, 150),
            answer_tokens=min(64, 1 + int(chance.expovariate(1 / 30))),
            deadline_s=deadline_s,
            client=client,
            tier=tier,
        )

    return draw


def goodput(run: Run) -> float:
    return sum(len(fate.request.tokens) for fate in run.fates if fate.completed) / run.now_s


def waits(fates: list[Fate], client: str) -> list[float]:
    return sorted(
        fate.begun_s - fate.request.marks.accepted_s
        for fate in fates
        if fate.arrival.client == client and fate.begun_s is not None
    )


@pytest.mark.parametrize("deadline_s", [None, 15.0, 30.0])
def test_however_much_comes_as_much_is_completed_in_time_as_at_capacity(deadline_s: float | None) -> None:
    done = {}
    for times in (1, 2, 5):
        run = Run(MODEL)
        run.play(poisson(times * CAPACITY_PER_S, 1, usual(deadline_s)))
        done[times] = goodput(run)

    assert done[2] >= 0.95 * done[1]
    assert done[5] >= 0.95 * done[1]


@pytest.mark.parametrize("deadline_s", [None, 10.0, 25.0])
@pytest.mark.parametrize("times", [2, 5])
def test_hints_are_within_a_factor_of_two_of_when_those_who_were_there_are_answered(
    deadline_s: float | None, times: int
) -> None:
    run = Run(MODEL)
    run.play(poisson(times * CAPACITY_PER_S, 2, usual(deadline_s)))
    hints = [(fate, _hint_s(fate), _truth_s(run.fates, fate)) for fate in run.fates if fate.refusal]
    honest = [0.5 * truth_s <= hint_s <= 2.0 * truth_s for _, hint_s, truth_s in hints]

    assert len(hints) > 100
    assert sum(honest) >= 0.9 * len(honest)


def _hint_s(fate: Fate) -> float:
    assert fate.refusal is not None
    assert fate.refusal.data.retry_after_ms is not None
    return fate.refusal.data.retry_after_ms / 1000


def _truth_s(fates: list[Fate], refused: Fate) -> float:
    """From its refusal until all that waited or ran had been answered."""
    before = [f.ended_s for f in fates if f.refusal is None and f.request.id < refused.request.id]
    return max(ended_s for ended_s in before if ended_s is not None) - refused.request.marks.accepted_s


def test_one_who_sends_ten_times_as_much_does_not_make_the_other_wait() -> None:
    small = list(poisson(0.3, 3, usual(client="small")))
    alone = Run(MODEL)
    alone.play(small)
    both = Run(MODEL)
    both.play([*small, *poisson(3 * CAPACITY_PER_S, 4, usual(client="large"))])

    assert all(fate.completed for fate in both.fates if fate.arrival.client == "small")
    # A step or two until somebody of the other's has got anywhere in its place.
    assert waits(alone.fates, "small")[-1] == 0.0
    assert waits(both.fates, "small")[-1] < 1.0
    assert waits(both.fates, "large")[-1] > 5.0


def test_an_interactive_request_never_waits_for_a_batch_full_of_others_and_they_lose_nothing() -> None:
    background = list(poisson(3 * CAPACITY_PER_S, 5, usual(tier=Priority.BACKGROUND)))
    alone = Run(MODEL)
    alone.play(background)
    mixed = Run(MODEL, Scheduling(preempt_tokens_min=2))
    chats = poisson(1.0, 6, usual(tier=Priority.INTERACTIVE, client="chat"))
    mixed.play([*background, *chats])
    chat_waits = waits(mixed.fates, "chat")

    assert mixed.gave_way > 20
    assert chat_waits[int(0.95 * len(chat_waits))] < 0.2
    assert all(fate.completed for fate in mixed.fates if fate.refusal is None)
    assert all(
        len(fate.request.tokens) == fate.arrival.answer_tokens for fate in mixed.fates if fate.completed
    )


def test_a_tier_that_is_less_urgent_waits_for_all_that_are_more_until_it_has_aged() -> None:
    run = Run(Model(batch_sequences_max=16), Scheduling(age_step_s=10.0))
    run.play(
        [
            *poisson(2 * CAPACITY_PER_S, 7, usual(tier=Priority.HIGH, client="urgent"), 60.0),
            Arrival(at_s=20.0, tier=Priority.BACKGROUND, client="patient"),
        ]
    )
    (patient,) = waits(run.fates, "patient")

    assert 20.0 < patient < 40.0


def test_requests_that_waited_longer_than_the_target_are_shed_the_least_urgent_first() -> None:
    config = Scheduling(sojourn_target_s=3.0, sojourn_interval_s=5.0)
    run = Run(MODEL, config)
    run.play(
        [
            *poisson(1.5 * CAPACITY_PER_S, 8, usual(tier=Priority.NORMAL)),
            *poisson(0.5, 9, usual(tier=Priority.BACKGROUND, client="batch")),
        ]
    )
    shed = [fate for fate in run.fates if fate.refusal is None and not fate.completed]

    assert shed
    assert all(_is_overloaded(fate.sink.outcomes[-1]) for fate in shed)
    assert any(fate.arrival.tier is Priority.BACKGROUND for fate in shed)


def _is_overloaded(outcome: object) -> bool:
    return isinstance(outcome, RpcError) and outcome.kind is ErrorKind.OVERLOADED


def test_a_batch_is_made_smaller_until_tokens_come_as_fast_as_its_tier_was_promised() -> None:
    from mlxsup.config.schema import Slo

    promised = Model(
        batch_sequences_max=16, queue_requests_max=64, slo={Priority.NORMAL: Slo(inter_token_s=0.06)}
    )
    paces = {}
    for name, model in (("promised", promised), ("not", MODEL)):
        run = Run(model, engine=Engine(step_s=0.01, sequence_s=0.01, prompt_token_s=0.0))
        run.play(poisson(10.0, 10, usual()))
        marks = [fate.request.marks for fate in run.fates if fate.completed and len(fate.request.tokens) > 30]
        late = marks[len(marks) // 2 :]
        paces[name] = sum((m.last_token_s or 0) - (m.first_token_s or 0) for m in late) / len(late)

    assert paces["promised"] < 0.5 * paces["not"]
