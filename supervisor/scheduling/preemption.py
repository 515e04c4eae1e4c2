"""Who gives way to a request that finds no place. Pure.

Rule 1: to an `interactive` one, who is of a less urgent tier: of the least urgent that runs. Rule 2: to one whose
client has at least two places fewer than another client, the other's, unless it is of a more urgent tier: so each
client that has something to do soon has its share of the places, however many another one filled before. Rule 3: of
those the one that began last: it has the least to lose where its cache can't be kept. Rule 4: nobody before it got
`preempt_tokens_min` tokens in its place, and from `preemptions_soft_max` times on twice as many before each time: so
each makes progress, whoever comes, and nobody can be made to stay. Rule 5: nobody who asked not to be resumed, or is
leaving anyway.
"""

from collections import Counter
from collections.abc import Sequence

from mlxsup.config.schema import Scheduling
from mlxsup.protocol.generation import Priority
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.scheduling.flights import Flight
from mlxsup.supervisor.scheduling.order import RANK

# Beyond any text.
_DOUBLINGS_MAX = 32


def choose_less_urgent(flights: Sequence[Flight], config: Scheduling) -> Flight | None:
    """For an interactive request, of those in one batch in the order in which they began."""
    return _choose([f for f in flights if f.request.priority is not Priority.INTERACTIVE], config)


def choose_of_crowd(
    flights: Sequence[Flight], newcomer: GenerationRequest, config: Scheduling
) -> Flight | None:
    """For one whose client has fewer places, of those in one batch in the order in which they began."""
    places = Counter(flight.request.client for flight in flights if not flight.gives_way)
    fair = places[newcomer.client] + 2
    urgency = RANK[newcomer.priority]
    crowd = [
        flight
        for flight in flights
        if places[flight.request.client] >= fair and RANK[flight.request.priority] >= urgency
    ]
    return _choose(crowd, config)


def has_less_than_its_share(flights: Sequence[Flight], client: str) -> bool:
    """Whether another client has at least two places more in this batch."""
    places = Counter(flight.request.client for flight in flights if not flight.gives_way)
    return any(count >= places[client] + 2 for count in places.values())


def _choose(flights: Sequence[Flight], config: Scheduling) -> Flight | None:
    chosen = None
    for flight in flights:
        if _may_give_way(flight, config) and (
            chosen is None or RANK[flight.request.priority] >= RANK[chosen.request.priority]
        ):
            chosen = flight
    return chosen


def _may_give_way(flight: Flight, config: Scheduling) -> bool:
    request = flight.request
    return (
        request.resume
        and not (flight.gives_way or request.ended or request.cancel_asked)
        and len(request.tokens) - flight.tokens_before >= _tokens_first(request.preempted, config)
    )


def _tokens_first(preempted: int, config: Scheduling) -> int:
    """What one that has given way so often gets in its place before it does so again."""
    beyond = max(0, preempted + 1 - config.preemptions_soft_max)
    return config.preempt_tokens_min << min(beyond, _DOUBLINGS_MAX)
