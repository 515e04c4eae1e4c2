"""What may follow from deaths. Pure."""

from collections import Counter
from collections.abc import Iterator

from mlxsup.supervisor.pool.lifecycle import FOLLOWS, WorkerState
from tests.simulation.causes import meaning
from tests.simulation.checks.facts import EPSILON_S, Facts
from tests.simulation.history import Answered, Death, Phase, State, Struck
from tests.simulation.schedule import Fault

_HUNG, _BROKEN = "hung", "protocol_broken"
_FAULT_CLASSES = {
    Fault.STUCK: {_HUNG},
    Fault.MUTE: {_HUNG},
    Fault.STOPPED: {_HUNG, "stopped"},
    Fault.GARBAGE: {_BROKEN},
    Fault.TORN: {_BROKEN},
    # Who says nothing any more may be found by its silence, before anybody wonders at the pipe.
    Fault.CLOSE_OUTPUT: {_BROKEN, _HUNG},
    Fault.CLOSE_INPUT: {_BROKEN, _HUNG},
}
# Between the shutdown and the end, beyond what is configured: pipes of dead workers, the disk, clients.
_END_S = 12.0
_POISON_DEATHS_MAX = 2
_ABANDONED = frozenset({"cancelled", "deadline_exceeded"})
# A copy may be in the old worker and one in the new, while one replaces the other.
_COPIES_DEATHS_MAX = 3


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
        expected = {_BROKEN} if death.pid in facts.nonsense else set()
        for struck in facts.struck[death.pid]:
            expected |= (
                {meaning(struck.cause).name} if struck.fault is Fault.DIE else _FAULT_CLASSES[struck.fault]
            )
        if death.name not in expected:
            yield f"worker {death.pid} is said to have died of {death.name}, it was {sorted(expected)}"


def whatever_a_worker_had_is_settled_by_its_death(facts: Facts) -> Iterator[str]:
    fruitless_max = facts.schedule.config.recovery.fruitless_resumes_max
    for death in facts.all(Death):
        given = {
            request
            for request, givens in facts.given.items()
            if (mine := [given for given in givens if facts.before(given, death)])
            and mine[-1].pid == death.pid
            and not facts.between(mine[-1], facts.gave_way[request], death)
        }
        had = {
            request
            for request in given
            if not any(facts.before(ended, death) for ended in facts.ended[request])
        }
        # The worker may have been busy with them still.
        abandoned = {
            request
            for request in given - had
            if any(ended.outcome in _ABANDONED for ended in facts.ended[request])
        }
        # A client may have ended the one that is quarantined.
        if had != set(death.lost) - (set(death.quarantined) - had) or len(set(death.lost)) < len(death.lost):
            yield f"worker {death.pid} had {sorted(had)}, and {death.lost} are settled"
        for request in death.resumed:
            ask = facts.ask_of(request)
            if ask is not None and not ask.resume:
                yield f"{ask.key} is resumed against its will"
            alone = not death.questions and not (had | abandoned) - {request}
            if alone and _is_spent(death, request, fruitless_max):
                yield f"request {request} is resumed after {death.name} once too often"
        for request in death.failed:
            ask = facts.ask_of(request)
            spent = _is_spent(death, request, fruitless_max) or _failed_before(facts, death, request)
            if (ask is None or ask.resume) and death.wait_s is not None and (not spent or had - {request}):
                yield f"request {request} fails with {death.pid}, and could go on"


def _failed_before(facts: Facts, death: Death, request: int) -> bool:
    """Whether the same, whoever sent it, has failed with another death of this class."""
    ask = facts.ask_of(request)
    return any(
        earlier.name == death.name and earlier.model == death.model and facts.before(earlier, death)
        for earlier in facts.all(Death)
        for other in earlier.failed
        if ask is not None and (same := facts.ask_of(other)) is not None and same.prompt == ask.prompt
    )


def _is_spent(death: Death, request: int, fruitless_max: int) -> bool:
    too_often = death.resumes_max is not None and death.times_resumed[request] >= death.resumes_max
    return too_often or death.fruitless[request] >= fruitless_max


def restarts_keep_their_budget(facts: Facts) -> Iterator[str]:
    recovery = facts.schedule.config.recovery
    for death in facts.all(Death):
        forgiven = facts.last_forgiven(death)
        counted = [
            other.weight
            for other in facts.all(Death)
            if other.model == death.model
            and not facts.before(death, other)
            and death.at_s - other.at_s < recovery.restart_window_s
            # Where another worker is there, a death asks for no restart, and costs none.
            and (other.wait_s is not None or other is death)
            and (forgiven is None or facts.before(forgiven, other))
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
        forgiven = facts.last_forgiven(begun)
        by_hand = forgiven is not None and facts.before(death, forgiven)
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
            if len(death.lost) > 1 or not _was_there_before(facts, request, death):
                yield f"request {request} is quarantined with {death.lost} at its first death"
    for answers in facts.answers.values():
        for answer in answers:
            if answer.kind == "quarantined" and not _is_known(facts, answer):
                yield f"{answer.key} is refused as one that nobody has quarantined"


def _was_there_before(facts: Facts, request: int, death: Death) -> bool:
    """Whether a worker had the same, whoever sent it, and died in a way that it can have caused."""
    asked = facts.accepted[request]
    ask = facts.ask_of(request)
    same = [
        other
        for other, submitted in facts.accepted.items()
        if submitted.model == asked.model
        and (other == request or ((another := facts.ask_of(other)) and ask and another.prompt == ask.prompt))
    ]
    return any(
        earlier.blames and facts.before(earlier, death) and earlier.pid == order.pid
        for earlier in facts.all(Death)
        for other in same
        for order in facts.given[other]
    )


def _is_known(facts: Facts, answer: Answered) -> bool:
    prompt = facts.asks[answer.key].prompt
    return any(
        (ask := facts.ask_of(request)) is not None and ask.prompt == prompt and facts.before(death, answer)
        for death in facts.all(Death)
        for request in death.quarantined
    )


def poison_ends_two_workers_at_most(facts: Facts) -> Iterator[str]:
    """However often the same is sent, unless it is let in again by hand."""
    # What is sent again after that is another one's first.
    is_short = facts.schedule.config.recovery.suspect_memory_s < 60.0
    kills: Counter[int] = Counter()
    copies: Counter[tuple[str, str]] = Counter()
    for struck in facts.all(Struck):
        # Nobody knows how far it had come in a worker whose output had ended before.
        if struck.request is not None and len(facts.struck[struck.pid]) == 1:
            ask = facts.asks[facts.accepted[struck.request].key]
            kills[struck.request] += 1
            copies[ask.model, ask.prompt] += 1
    for request, count in kills.items():
        if count > _POISON_DEATHS_MAX:
            yield f"request {request} ends {count} workers"
    for (model, prompt), count in copies.items():
        if count > _COPIES_DEATHS_MAX and not _is_forgiven(facts) and not is_short:
            yield f"{prompt} ends {count} workers of {model}"


def who_is_quarantined_is_refused(facts: Facts) -> Iterator[str]:
    if _is_forgiven(facts):
        return
    found = [
        (death, guilty)
        for death in facts.all(Death)
        for request in death.quarantined
        if (guilty := facts.ask_of(request)) is not None
    ]
    for submitted in facts.accepted.values():
        ask = facts.asks.get(submitted.key)
        for death, guilty in found:
            same = ask is not None and (guilty.prompt, guilty.model) == (ask.prompt, ask.model)
            if same and facts.before(death, submitted):
                yield f"{submitted.key} is accepted, and was quarantined as {guilty.key}"


def _is_forgiven(facts: Facts) -> bool:
    return any(question.method == "model/forgive" for question in facts.questions.values())


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
