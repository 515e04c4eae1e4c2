"""Whom a scheduler refuses, when, and what it says."""

import pytest

from mlxsup.config.schema import Model
from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import Priority
from tests.unit.scheduling.simulated_load import Arrival, Fate, Run

MODEL = Model(batch_sequences_max=2, queue_requests_max=20)


def busy(*others: Arrival) -> tuple[Run, list[Fate]]:
    """Behind two that run and ten that wait, for as long as a speed needs to be known."""
    run = Run(MODEL)
    load = [Arrival(at_s=index * 0.2, max_tokens=40) for index in range(40)]
    fates = run.play([*load, *others])
    return run, fates


def test_a_deadline_that_the_wait_leaves_no_time_for_is_refused_at_once_with_the_reckoning() -> None:
    hasty = Arrival(at_s=7.9, max_tokens=40, deadline_s=3.0)
    _, fates = busy(hasty)
    (fate,) = [fate for fate in fates if fate.arrival is hasty]

    assert fate.refusal is not None
    assert fate.refusal.kind is ErrorKind.OVERLOADED
    assert "its deadline is in 3.0 s" in fate.refusal.message
    assert (fate.refusal.data.retry_after_ms or 0) > 3000


def test_one_that_may_have_more_tokens_than_the_context_makes_nobody_seem_to_wait_for_them_all() -> None:
    boundless = Arrival(at_s=7.8, max_tokens=1 << 24, answer_tokens=40)
    hasty = Arrival(at_s=7.9, max_tokens=40, deadline_s=1.0)
    _, fates = busy(boundless, hasty)
    (refusal,) = [fate.refusal for fate in fates if fate.arrival is hasty]

    assert refusal is not None
    # All of a context, at the simulated engine's pace, and no more.
    assert (refusal.data.retry_after_ms or 0) < 8192 * 1000


def test_one_that_has_become_hopeless_while_it_waited_is_not_computed() -> None:
    # Nothing is known of the speed when it comes, so it is let in.
    hopeless = Arrival(at_s=0.0, max_tokens=40, prompt_tokens=4000, deadline_s=4.0, tier=Priority.BACKGROUND)
    _, fates = busy(Arrival(at_s=0.0, max_tokens=40), Arrival(at_s=0.0, max_tokens=40), hopeless)
    (fate,) = [fate for fate in fates if fate.arrival is hopeless]
    (outcome,) = fate.sink.outcomes

    assert isinstance(outcome, RpcError)
    assert outcome.kind is ErrorKind.DEADLINE_EXCEEDED
    assert fate.begun_s is None


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        (Model(batch_sequences_max=1, queue_requests_max=2), "queue of this model is full (2"),
        (Model(batch_sequences_max=1, queue_tier_requests_max=2), "full for this priority (2"),
        (Model(batch_sequences_max=1, queue_client_requests_max=2), "as it may have (2)"),
    ],
)
def test_a_full_queue_says_whose_bound_is_reached(bounds: Model, words: str) -> None:
    run = Run(bounds)
    fates = run.play([Arrival(at_s=0.001 * index) for index in range(5)])
    refused = [fate.refusal for fate in fates if fate.refusal is not None]

    assert refused
    assert all(words in error.message for error in refused)
    assert all(error.data.retriable and error.data.retry_after_ms for error in refused)
