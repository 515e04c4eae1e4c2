"""What may follow from deaths. Pure."""

from collections.abc import Iterator

from mlxsup.supervisor.pool.lifecycle import FOLLOWS, WorkerState
from tests.simulation.causes import meaning
from tests.simulation.checks.facts import EPSILON_S, Facts
from tests.simulation.history import Answered, Death, Forgiven, Phase, State, Struck
from tests.simulation.schedule import Fault

_FAULT_CLASSES = {
    Fault.STUCK: "hung",
    Fault.MUTE: "hung",
    Fault.STOPPED: "hung",
    Fault.GARBAGE: "protocol_broken",
    Fault.TORN: "protocol_broken",
    Fault.CLOSE_OUTPUT: "protocol_broken",
    Fault.CLOSE_INPUT: "protocol_broken",
}
# Between the shutdown and the end, beyond what is configured: pipes of dead workers, the disk, clients.
_END_S = 12.0
_POISON_DEATHS_MAX = 2


def states_follow_each_other(facts: Facts) -> Iterator[str]:
    last: dict[str, State] = {}
    for state in facts.all(State):
        before = last.get(state.model)
        last[state.model] = state
        now = WorkerState(state.state)
        if before is None:
            if now not in FOLLOWS[WorkerState.STOPPED]:
                yield f"{state.model} begins as {now}"
        elif state.generation < before.generation:
            yield f"{state.model} goes back from generation {before.generation} to {state.generation}"
        elif (
            state.state != before.state
            and now not in FOLLOWS[WorkerState(before.state)]
            # Another worker's state is no transition of the last one's.
            and state.generation == before.generation
        ):
            yield f"{state.model} goes from {before.state} to {now} at {state.at_s:.3f} s"


def deaths_are_understood(facts: Facts) -> Iterator[str]:
    seen: set[int] = set()
    for death in facts.all(Death):
        if death.pid in seen:
            yield f"the death of {death.pid} is told twice"
        seen.add(death.pid)
        causes = facts.struck[death.pid]
        expected = {
            meaning(struck.cause).name if struck.fault is Fault.DIE else _FAULT_CLASSES[struck.fault]
            for struck in causes
        }
        if death.pid in facts.nonsense:
            expected.add("protocol_broken")
        if death.name not in expected:
            yield f"worker {death.pid} is said to have died of {death.name}, it was {sorted(expected)}"


def whatever_a_worker_had_is_settled_by_its_death(facts: Facts) -> Iterator[str]:
    fruitless_max = facts.schedule.config.recovery.fruitless_resumes_max
    for death in facts.all(Death):
        had = {
            request
            for request, orders in facts.orders.items()
            if (mine := [order for order in orders if facts.before(order, death)])
            and mine[-1].pid == death.pid
            and not any(facts.before(ended, death) for ended in facts.ended[request])
        }
        # An order may be on its way to a worker that never reads it.
        if not had <= set(death.lost) or len(death.lost) != len(set(death.lost)):
            yield f"worker {death.pid} had {sorted(had)}, and {death.lost} are settled"
        for request in death.resumed:
            ask = facts.ask_of(request)
            if ask is not None and not ask.resume:
                yield f"{ask.key} is resumed against its will"
            if _is_spent(death, request, fruitless_max):
                yield f"request {request} is resumed after {death.name} once too often"
        for request in death.failed:
            ask = facts.ask_of(request)
            spent = _is_spent(death, request, fruitless_max)
            if (ask is None or ask.resume) and not spent and death.wait_s is not None:
                yield f"request {request} fails with {death.pid}, and could go on"


def _is_spent(death: Death, request: int, fruitless_max: int) -> bool:
    too_often = death.resumes_max is not None and death.times_resumed[request] >= death.resumes_max
    return too_often or death.fruitless[request] >= fruitless_max


def restarts_keep_their_budget(facts: Facts) -> Iterator[str]:
    recovery = facts.schedule.config.recovery
    for death in facts.all(Death):
        forgiven = [entry for entry in facts.all(Forgiven) if entry.model == death.model]
        counted = [
            other.weight
            for other in facts.all(Death)
            if other.model == death.model
            and not facts.before(death, other)
            and death.at_s - other.at_s < recovery.restart_window_s
            and not any(facts.before(other, entry) and facts.before(entry, death) for entry in forgiven)
        ]
        if sum(counted) > recovery.restarts_max and death.wait_s is not None:
            yield f"{death.model} starts again after deaths that weigh {sum(counted)}"
        if death.wait_s is not None and death.wait_s > recovery.restart_backoff_max_s:
            yield f"{death.model} waits {death.wait_s:.1f} s"


def nobody_starts_before_the_backoff_is_over(facts: Facts) -> Iterator[str]:
    for death in facts.all(Death):
        states = [
            state for state in facts.all(State) if state.model == death.model and facts.before(death, state)
        ]
        if len(states) < 2 or states[0].state != "backoff" or death.wait_s is None:
            continue
        begun = states[1]
        by_hand = any(
            facts.before(death, entry) and facts.before(entry, begun)
            for entry in facts.all(Forgiven)
            if entry.model == death.model
        )
        if begun.state == "spawning" and not by_hand and begun.at_s < death.at_s + death.wait_s - EPSILON_S:
            yield f"{death.model} waits {begun.at_s - death.at_s:.3f} s of {death.wait_s:.3f} s"


def only_poison_is_quarantined(facts: Facts) -> Iterator[str]:
    """And whoever is, was alone when its last worker died, and there when another one had died before."""
    for death in facts.all(Death):
        for request in death.quarantined:
            ask = facts.ask_of(request)
            innocent = ask is None or ask.prompt not in facts.schedule.poison_prompts
            if innocent and facts.schedule.blameless:
                yield f"request {request} is quarantined, and was innocent"
            earlier = [
                other
                for other in facts.all(Death)
                if request in other.lost and other.blames and facts.before(other, death)
            ]
            if len(death.lost) > 1 or not earlier:
                yield f"request {request} is quarantined with {death.lost} after {len(earlier)} deaths"
    for answers in facts.answers.values():
        for answer in answers:
            if answer.kind == "quarantined" and not _is_known(facts, answer):
                yield f"{answer.key} is refused as one that nobody has quarantined"


def _is_known(facts: Facts, answer: Answered) -> bool:
    prompt = facts.asks[answer.key].prompt
    return any(
        (ask := facts.ask_of(request)) is not None and ask.prompt == prompt and facts.before(death, answer)
        for death in facts.all(Death)
        for request in death.quarantined
    )


def poison_is_found(facts: Facts) -> Iterator[str]:
    kills: dict[int, int] = {}
    for struck in facts.all(Struck):
        # Nobody knows how far it had come in a worker whose output had ended before.
        if struck.request is not None and len(facts.struck[struck.pid]) == 1:
            kills[struck.request] = kills.get(struck.request, 0) + 1
    for request, count in kills.items():
        if count > _POISON_DEATHS_MAX:
            yield f"request {request} ends {count} workers"
    for submitted in facts.submitted.values():
        ask = facts.asks.get(submitted.key)
        if ask is None or submitted.refused is not None:
            continue
        for death in facts.all(Death):
            for request in death.quarantined:
                guilty = facts.ask_of(request)
                if (
                    guilty is not None
                    and (guilty.prompt, guilty.model) == (ask.prompt, ask.model)
                    and facts.before(death, submitted)
                ):
                    yield f"{ask.key} is accepted, and was quarantined as request {request}"


def suspects_begin_alone(facts: Facts) -> Iterator[str]:
    for death in facts.all(Death):
        if not death.blames:
            continue
        for request in death.resumed:
            later = next((order for order in facts.orders[request] if facts.before(death, order)), None)
            if later is not None and later.batch > 1:
                yield f"request {request} is suspected, and computed beside {later.batch - 1} others"


def a_breaker_that_is_held_open_lets_nobody_in(facts: Facts) -> Iterator[str]:
    for key, question in facts.questions.items():
        if question.method != "model/breaker" or question.params["action"] != "force_open":
            continue
        opened = next(iter(facts.answers[key]), None)
        if opened is None or opened.kind is not None:
            continue
        later = [
            asked
            for asked in facts.asked.values()
            if asked.method == "model/breaker" and asked.key != key and facts.before(facts.asked[key], asked)
        ]
        for submitted in facts.accepted.values():
            if (
                submitted.model == question.params["model"]
                and facts.before(opened, submitted)
                and not any(facts.before(asked, submitted) for asked in later)
            ):
                yield f"{submitted.key} is accepted, and the breaker is held open"


def it_ends_in_time(facts: Facts) -> Iterator[str]:
    config = facts.schedule.config.worker
    begun = next((phase for phase in facts.all(Phase) if phase.name == "shutdown"), None)
    over_s = facts.phase_s("over")
    if begun is None or over_s is None:
        yield "it never ends"
        return
    ladder_s = config.exit_grace_s + config.term_grace_s + config.kill_grace_s
    bound_s = begun.drain_s + 2 * ladder_s + _END_S
    if over_s - begun.at_s > bound_s:
        yield f"the shutdown takes {over_s - begun.at_s:.1f} s, and has {bound_s:.1f} s"
