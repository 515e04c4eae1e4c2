"""What a schedule went through: a check that is never put to the test proves nothing. Pure."""

from collections import Counter

from tests.simulation.checks.facts import Facts
from tests.simulation.history import Answered, Asked, Cancelled, Closed, Death, GaveWay, Order, State, Struck


def count(facts: Facts) -> Counter[str]:
    """How often each thing happened, by `group: what`."""
    seen: Counter[str] = Counter()
    for entry in facts.history:
        match entry:
            case Asked():
                seen[f"asked: {entry.method}"] += 1
            case Answered():
                seen[f"answered: {entry.kind or entry.result.get('finish_reason', 'result')}"] += 1
            case Struck():
                what = "poison" if entry.request is not None else entry.fault.value
                seen[f"struck: {what}"] += 1
            case Death():
                seen[f"deaths: {entry.name}"] += 1
                seen["requests: resumed"] += len(entry.resumed)
                seen["requests: failed by a death"] += len(entry.failed)
                seen["requests: quarantined"] += len(entry.quarantined)
            case State():
                seen[f"states: {entry.state}"] += 1
            case Cancelled():
                seen["requests: cancelled"] += 1
            case Closed():
                seen[f"clients: closed by {entry.by}"] += 1
            case GaveWay():
                seen["requests: gave way"] += 1
            case Order():
                seen["requests: computed"] += 1
    seen["schedules: shut down midway"] += facts.schedule.ends_midway
    seen["simulated seconds"] += round(facts.phase_s("over") or 0.0)
    return seen
