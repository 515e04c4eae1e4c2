from typing import Any

from mlxsup.protocol.service import Event, WorkerCounters
from mlxsup.supervisor.measure.worker_counters import WorkerTally


def worker(state: str, generation: int = 1, model: str = "m") -> Event:
    return Event(topic="worker", model=model, what=state, detail={"generation": generation, "reason": None})


def death(death_class: str, generation: int = 1, model: str = "m") -> Event:
    return Event(topic="death", model=model, what=death_class, detail={"pid": 1, "generation": generation})


def tally(*events: Event) -> WorkerCounters:
    """What is counted of `m`."""
    tally = WorkerTally()
    for event in events:
        tally.take(event)
    return tally.read("m")


def test_a_model_of_which_nothing_is_known_has_had_no_death() -> None:
    assert tally() == WorkerCounters(deaths={}, restarts=0)


def test_deaths_are_counted_by_class_and_each_worker_that_follows_one() -> None:
    counted = tally(
        *(worker("spawning"), worker("ready"), death("killed"), worker("backoff"), worker("spawning", 2)),
        *(death("hung", 2), worker("backoff", 2), worker("backoff", 2), worker("spawning", 3)),
        *(worker("ready", 3), death("killed", 3), worker("backoff", 3)),
    )
    assert counted == WorkerCounters(deaths={"killed": 2, "hung": 1}, restarts=2)


def test_one_models_deaths_are_not_anothers() -> None:
    assert tally(death("killed", model="other"), worker("spawning", 2)) == WorkerCounters(
        deaths={}, restarts=0
    )


def test_a_request_that_is_quarantined_is_no_death() -> None:
    quarantined: dict[str, Any] = {"digest": "d"}
    event = Event(topic="death", model="m", what="request_quarantined", detail=quarantined)
    assert tally(event).deaths == {}


def test_what_is_started_by_hand_after_the_model_was_given_up_is_no_restart() -> None:
    for end in ("quarantined", "failed", "stopped"):
        counted = tally(worker("spawning"), death("killed"), worker(end), worker("spawning", 2))
        assert counted == WorkerCounters(deaths={"killed": 1}, restarts=0)


def test_the_death_of_a_worker_that_was_to_replace_another_is_followed_by_none() -> None:
    counted = tally(
        *(worker("ready"), death("aborted", 2), worker("draining"), worker("stopped"), worker("spawning", 3))
    )
    assert counted == WorkerCounters(deaths={"aborted": 1}, restarts=0)
    # Nor is that of the one that was replaced.
    assert tally(worker("ready", 2), death("aborted", 1), worker("spawning", 3)).restarts == 0
