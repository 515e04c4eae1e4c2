"""Whether what happened in a schedule is what should. Pure."""

from collections.abc import Callable, Iterator

from tests.simulation.checks import recovery, requests, workers
from tests.simulation.checks.facts import Facts
from tests.simulation.history import Found, History
from tests.simulation.schedule import Schedule

Check = Callable[[Facts], Iterator[str]]


def nothing_was_found(facts: Facts) -> Iterator[str]:
    for found in facts.all(Found):
        yield found.what


CHECKS: tuple[Check, ...] = (
    nothing_was_found,
    requests.each_is_answered_once,
    requests.connections_stay_open,
    requests.texts_are_exact,
    requests.answers_to_questions_are_right,
    requests.errors_have_a_kind_and_a_cause,
    requests.deadlines_are_kept,
    requests.cancels_are_obeyed,
    requests.nobody_is_cut_off_before_the_drain_is_over,
    requests.what_is_accepted_ends_once,
    requests.the_queue_keeps_its_bound,
    workers.batches_keep_their_bound,
    workers.orders_go_on_where_the_last_one_ended,
    workers.requests_are_in_one_worker_at_a_time,
    workers.nothing_is_given_to_a_worker_that_is_ending,
    workers.two_live_at_most,
    workers.workers_keep_their_budget,
    workers.well_workers_are_ended_gently,
    workers.all_have_ended,
    recovery.states_follow_each_other,
    recovery.deaths_are_understood,
    recovery.whatever_a_worker_had_is_settled_by_its_death,
    recovery.restarts_keep_their_budget,
    recovery.nobody_starts_before_the_backoff_is_over,
    recovery.only_poison_is_quarantined,
    recovery.poison_ends_two_workers_at_most,
    recovery.who_is_quarantined_is_refused,
    recovery.suspects_begin_alone,
    recovery.a_breaker_that_is_held_open_lets_nobody_in,
    recovery.it_ends_in_time,
)


def check(schedule: Schedule, history: History) -> list[str]:
    """What is wrong, each with the name of the rule that it breaks."""
    return examine(schedule, history)[1]


def examine(schedule: Schedule, history: History) -> tuple[Facts, list[str]]:
    facts = Facts(schedule, history)
    return facts, [f"{rule.__name__}: {what}" for rule in CHECKS for what in rule(facts)]
