"""What a model has to do, for those who share the machine's memory with it. Pure."""

from collections.abc import Collection
from typing import Protocol

from mlxsup.protocol.generation import Priority
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.pool.life import Life
from mlxsup.supervisor.residency.tenant import Demand

_TIERS = list(Priority)


class Requests(Protocol):
    @property
    def queued(self) -> int: ...

    def queued_by_priority(self) -> dict[str, int]: ...

    def in_flight(self, port: Life) -> list[GenerationRequest]: ...


def demand_of(requests: Requests, lives: Collection[Life]) -> Demand:
    """Requests that wait or run, and questions; those, and loads that are asked for by hand, are of the tier `normal`."""
    waiting = [Priority(tier) for tier, count in requests.queued_by_priority().items() if count]
    running = [request.priority for life in lives for request in requests.in_flight(life)]
    asked = any(life.questions for life in lives)
    tiers = waiting + running or [Priority.NORMAL]
    urgency = min(_TIERS.index(tier) for tier in tiers)
    return Demand(busy=bool(waiting or running or asked), urgency=urgency)
