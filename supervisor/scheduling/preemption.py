"""Who gives way to a more urgent request that finds no place. Pure.

Rule 1: only to `interactive`, and only who is of a less urgent tier. Rule 2: of the least urgent tier that runs, the one
that began last: it has the least to lose where its cache can't be kept. Rule 3: nobody more often than
`preemptions_max`, nor before it got `preempt_tokens_min` tokens in its place: so each makes progress, however many urgent ones
come. Rule 4: nobody who asked not to be resumed, or is leaving anyway.
"""

from collections.abc import Iterable

from mlxsup.protocol.generation import Priority
from mlxsup.supervisor.scheduling.flights import Flight

URGENCY = {tier: urgency for urgency, tier in enumerate(Priority)}
"""0 is the most urgent."""


def choose_who_gives_way(
    flights: Iterable[Flight], *, preemptions_max: int, tokens_min: int
) -> Flight | None:
    """Of those in one batch, in the order in which they began."""
    chosen = None
    for flight in flights:
        urgency = URGENCY[flight.request.priority]
        if urgency == 0 or not _may_give_way(flight, preemptions_max, tokens_min):
            continue
        if chosen is None or urgency >= URGENCY[chosen.request.priority]:
            chosen = flight
    return chosen


def _may_give_way(flight: Flight, preemptions_max: int, tokens_min: int) -> bool:
    request = flight.request
    return (
        request.resume
        and not (flight.gives_way or request.ended or request.cancel_asked)
        and request.preempted < preemptions_max
        and len(request.tokens) - flight.tokens_before >= tokens_min
    )
