"""What clients may see of their requests. Pure."""

from collections.abc import Iterator

from mlxsup.protocol.errors import ErrorKind
from tests.fakes.memory_worker import full_text, question_tokens
from tests.simulation.checks.facts import EPSILON_S, Facts
from tests.simulation.history import Answered, Asked, Cancelled, Closed, Death, Phase, Stray, Submitted, Told
from tests.simulation.schedule import REFUSED, Ask

_OBEYS_S = 0.1
# Behind the tokens that a worker has computed, the text of so many of them.
_LAG_TOKENS_MAX = 2
_NO_WORKER = {
    ErrorKind.MODEL_NOT_FOUND,
    ErrorKind.MODEL_LOAD_FAILED,
    ErrorKind.CIRCUIT_OPEN,
    ErrorKind.SHUTTING_DOWN,
    ErrorKind.LIMIT_EXCEEDED,
    ErrorKind.WORKER_DIED,
    ErrorKind.CANCELLED,
}
_GENERATION = _NO_WORKER | {
    ErrorKind.OVERLOADED,
    ErrorKind.DEADLINE_EXCEEDED,
    ErrorKind.QUARANTINED,
    ErrorKind.INVALID_PARAMS,
}
_KINDS: dict[str, set[ErrorKind]] = {
    "generate": _GENERATION,
    "tokenize": {*_NO_WORKER, ErrorKind.OVERLOADED},
    "detokenize": {*_NO_WORKER, ErrorKind.OVERLOADED},
    "model/load": _NO_WORKER,
    "model/recycle": _NO_WORKER,
    "model/unload": {ErrorKind.INVALID_PARAMS, ErrorKind.LIMIT_EXCEEDED, ErrorKind.SHUTTING_DOWN},
}
_OTHER_KINDS = {ErrorKind.LIMIT_EXCEEDED, ErrorKind.SHUTTING_DOWN}


def each_is_answered_once(facts: Facts) -> Iterator[str]:
    over = {closed.client: closed for closed in facts.all(Closed) if closed.by != "input"}
    for key, asked in facts.asked.items():
        answers = len(facts.answers[key])
        if answers > 1:
            yield f"{key} is answered {answers} times"
        elif not answers and not _may_go_unanswered(facts, asked, over.get(asked.client)):
            yield f"{key} is never answered"
    for stray in facts.all(Stray):
        yield f"client {stray.client} gets what it does not wait for: {stray.what}"


def _may_go_unanswered(facts: Facts, asked: Asked, closed: Closed | None) -> bool:
    if closed is None:
        return False
    end = next((phase for phase in facts.all(Phase) if phase.name == "closed"), None)
    # Who reads slowly may not have got everything when the supervisor is gone, and who asks then nothing.
    return (
        closed.by == "client"
        or asked.client in facts.schedule.slow_clients
        or (end is not None and asked.at_s >= end.at_s - EPSILON_S)
    )


def connections_stay_open(facts: Facts) -> Iterator[str]:
    """But for who leaves, has ended its input, or sees the supervisor go."""
    finished = {closed.client for closed in facts.all(Closed) if closed.by == "input"}
    end = next((phase for phase in facts.all(Phase) if phase.name == "closed"), None)
    for closed in facts.all(Closed):
        if (
            closed.by == "server"
            and closed.client not in finished
            and (end is None or facts.before(closed, end))
        ):
            yield f"the connection of client {closed.client} is closed at {closed.at_s:.3f} s"


def texts_are_exact(facts: Facts) -> Iterator[str]:
    """No token is lost, doubled or swapped, whatever happened to the workers."""
    for key, ask in facts.asks.items():
        whole = full_text(ask.prompt, ask.max_tokens)
        pieces = "".join(facts.deltas[key])
        if not whole.startswith(pieces):
            yield f"{key} is sent {pieces!r}"
        if pieces and not ask.stream:
            yield f"{key} asked for no stream and is sent {pieces!r}"
        for answer in facts.answers[key]:
            yield from _answer_is_exact(facts, ask, answer, whole, pieces)


def _answer_is_exact(facts: Facts, ask: Ask, answer: Answered, whole: str, pieces: str) -> Iterator[str]:
    if answer.kind is not None:
        delivered = answer.data.get("tokens_delivered")
        if delivered is not None and ask.stream and not _fits(ask, pieces, delivered):
            yield f"{ask.key} ends with {delivered} tokens delivered, and was sent {pieces!r}"
        return
    text, finish = answer.result["text"], answer.result["finish_reason"]
    tokens = answer.result["usage"]["completion_tokens"]
    if ask.stream and text != pieces:
        yield f"{ask.key} is sent {pieces!r} and ends with {text!r}"
    if finish == "length":
        if text != whole or tokens != ask.max_tokens:
            yield f"{ask.key} ends with {tokens} tokens and {text!r}"
        yield from _was_served_by(facts, ask, answer)
    elif finish != "cancelled":
        yield f"{ask.key} ends for no reason: {finish}"
    elif not any(cancelled.key == ask.key for cancelled in facts.all(Cancelled)):
        yield f"{ask.key} is cancelled, and nobody asked for it"
    elif not _fits(ask, text, tokens):
        yield f"{ask.key} is cancelled with {tokens} tokens and {text!r}"


def _fits(ask: Ask, text: str, tokens: int) -> bool:
    return any(
        text == full_text(ask.prompt, count)
        for count in range(max(0, tokens - _LAG_TOKENS_MAX), min(tokens, ask.max_tokens) + 1)
    )


def _was_served_by(facts: Facts, ask: Ask, answer: Answered) -> Iterator[str]:
    request = facts.submitted[ask.key].request
    resumed = (answer.result["worker"] or {}).get("resumed")
    deaths = sum(request in death.resumed for death in facts.all(Death))
    # A worker may die before it reads an order.
    lives = deaths + len(facts.gave_way[request])
    if resumed != deaths or lives < len(facts.orders[request]) - 1:
        yield f"{ask.key} says that it was resumed {resumed} times, after {deaths} deaths"


def answers_to_questions_are_right(facts: Facts) -> Iterator[str]:
    for key, question in facts.questions.items():
        for answer in facts.answers[key]:
            if answer.kind is not None:
                continue
            if question.method == "tokenize" and answer.result["tokens"] != question_tokens(
                question.params["text"]
            ):
                yield f"{key}: wrong tokens: {answer.result}"
            if question.method == "detokenize" and answer.result["text"] != "hi":
                yield f"{key}: wrong text: {answer.result}"


def errors_have_a_kind_and_a_cause(facts: Facts) -> Iterator[str]:
    for key, answers in facts.answers.items():
        for answer in answers:
            if answer.kind is None or key not in facts.asked:
                continue
            method = facts.asked[key].method
            if answer.kind not in _KINDS.get(method, _OTHER_KINDS):
                yield f"{key} ({method}) is refused with {answer.kind}: {answer.message}"
            elif not _has_cause(facts, key, answer):
                yield f"{key} ({method}) is refused with {answer.kind} for no reason: {answer.message}"


def _has_cause(facts: Facts, key: str, answer: Answered) -> bool:
    match answer.kind:
        case ErrorKind.CIRCUIT_OPEN:
            return (
                facts.schedule.panics > 0
                or _asked_before(facts, answer, "model/breaker")
                or any(facts.before(death, answer) for death in facts.all(Death))
            )
        case ErrorKind.MODEL_LOAD_FAILED | ErrorKind.MODEL_NOT_FOUND:
            return _loads_may_fail(facts)
        case ErrorKind.WORKER_DIED:
            return any(facts.before(death, answer) for death in facts.all(Death))
        case ErrorKind.CANCELLED:
            return (
                _was_unloaded(facts, key, answer)
                # Who waits for a load learns how it ended, also when it was to end so.
                or (key not in facts.asks and _asked_before(facts, answer, "model/load"))
                or any(cancelled.key == key for cancelled in facts.all(Cancelled))
            )
        case ErrorKind.SHUTTING_DOWN:
            end_s = facts.phase_s("shutdown")
            return end_s is not None and end_s <= answer.at_s + EPSILON_S
        case ErrorKind.INVALID_PARAMS:
            return key not in facts.asks or facts.asks[key].prompt.startswith(REFUSED)
        case ErrorKind.LIMIT_EXCEEDED:
            return facts.schedule.config.server.in_flight_requests_max < 10
    return True


def _asked_before(facts: Facts, answer: Answered, method: str) -> bool:
    return any(
        question.method == method and facts.before(facts.asked[key], answer)
        for key, question in facts.questions.items()
    )


def _was_unloaded(facts: Facts, key: str, answer: Answered) -> bool:
    """A request for text loses its worker by force only."""
    ask = facts.asks.get(key)
    return any(
        question.method == "model/unload"
        and (ask is None or (question.params["model"] == ask.model and question.params["force"]))
        and facts.before(facts.asked[unload], answer)
        for unload, question in facts.questions.items()
    )


def _loads_may_fail(facts: Facts) -> bool:
    schedule = facts.schedule
    return bool(
        schedule.locate_fails
        or schedule.shortages
        or any(fate.spawn_fails or fate.refuses_load for fate in schedule.fates)
        or any(facts.struck.values())
    )


def deadlines_are_kept(facts: Facts) -> Iterator[str]:
    for request, submitted in facts.accepted.items():
        ask = facts.ask_of(request)
        if ask is None or ask.deadline_ms is None:
            continue
        deadline_s = submitted.at_s + ask.deadline_ms / 1000
        for ended in facts.ended[request]:
            late = ended.at_s > deadline_s + EPSILON_S
            # One that had no turn yet may be hopeless before.
            early = (
                ended.outcome == ErrorKind.DEADLINE_EXCEEDED
                and ended.at_s < deadline_s - EPSILON_S
                and bool(facts.given[request])
            )
            if late or early:
                yield f"{ask.key} has until {deadline_s:.3f} s and ends at {ended.at_s:.3f} s: {ended.outcome}"


def cancels_are_obeyed(facts: Facts) -> Iterator[str]:
    """At once, unless it is in a worker that hears nothing, or nothing any more."""
    told = {entry.pid for entry in facts.all(Told)}
    for cancelled in facts.all(Cancelled):
        submitted = facts.submitted.get(cancelled.key)
        if submitted is None or submitted.refused is not None:
            continue
        orders = facts.orders[submitted.request]
        if submitted.model in facts.models_with_hangs or (orders and orders[-1].pid in told):
            continue
        for ended in facts.ended[submitted.request]:
            if ended.at_s > cancelled.at_s + _OBEYS_S:
                yield f"{cancelled.key} goes on for {ended.at_s - cancelled.at_s:.3f} s after its cancel"


def nobody_is_cut_off_before_the_drain_is_over(facts: Facts) -> Iterator[str]:
    """Who is computed when the supervisor begins to end, unless somebody is in a hurry, or its worker is not well."""
    begun = next((phase for phase in facts.all(Phase) if phase.name == "shutdown"), None)
    by_force = any(
        question.method == "model/unload" and question.params["force"]
        for question in facts.questions.values()
    )
    if begun is None or facts.is_hurried or by_force:
        return
    for request, ends in facts.ended.items():
        orders = facts.orders[request]
        for ended in ends:
            early = (
                ended.outcome == ErrorKind.SHUTTING_DOWN
                and ended.at_s < begun.at_s + begun.drain_s - EPSILON_S
            )
            if early and orders and not facts.struck[orders[-1].pid]:
                yield f"{facts.accepted[request].key} is cut off {begun.at_s + begun.drain_s - ended.at_s:.3f} s early"


def what_is_accepted_ends_once(facts: Facts) -> Iterator[str]:
    for request, submitted in facts.accepted.items():
        outcomes = [ended.outcome for ended in facts.ended[request]]
        if len(outcomes) != 1:
            yield f"{submitted.key} (request {request}) ends {len(outcomes)} times: {outcomes}"
        for answer in facts.answers[submitted.key]:
            told = answer.kind or answer.result["finish_reason"]
            if told not in outcomes:
                yield f"{submitted.key} is told {told} and counted as {outcomes}"
    for submitted in facts.submitted.values():
        if submitted.refused is not None and (
            facts.ended[submitted.request] or facts.orders[submitted.request]
        ):
            yield f"{submitted.key} is refused, and then goes on"


def the_queue_keeps_its_bound(facts: Facts) -> Iterator[str]:
    """One more may come for whom another one has to leave, the queue or its place in the batch."""
    for submitted in facts.submitted.values():
        bound = facts.schedule.config.models[submitted.model].queue_requests_max
        full = submitted.queued_before >= bound
        if submitted.refused is None and full and not _somebody_left_for(facts, submitted):
            yield f"{submitted.key} is accepted behind {submitted.queued_before} others"
        ask = facts.asks.get(submitted.key)
        may_be_late = ask is not None and ask.deadline_ms is not None
        if submitted.refused == ErrorKind.OVERLOADED and not (full or may_be_late):
            yield f"{submitted.key} is refused as overloaded behind {submitted.queued_before} others"


def _somebody_left_for(facts: Facts, submitted: Submitted) -> bool:
    if any(given.at_s == submitted.at_s for given in facts.given[submitted.request]):
        return True
    return any(
        ended.outcome == ErrorKind.OVERLOADED and ended.at_s == submitted.at_s
        for ends in facts.ended.values()
        for ended in ends
    )
