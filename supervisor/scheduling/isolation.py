"""Who has to be computed alone for a while, and what that means for others and for questions. Pure.

Rule 1: nobody joins one that is computed alone, and it begins when the worker has nothing else. Rule 2: those that run
give way to one that lost its worker and is to be alone, and go on behind it; a newcomer that is known for a death waits
instead: else one who sends it again and again would stop all others. Rule 3: questions to the worker, which are no
requests, wait for it, and it for them.
"""

from collections.abc import Sequence

from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.recovery.poison import PoisonWatch
from mlxsup.supervisor.scheduling.flights import Flight


class Isolation:
    def __init__(self, poison: PoisonWatch) -> None:
        self._poison = poison

    @property
    def concerns_somebody(self) -> bool:
        return self._poison.has_loners

    def recognise(self, request: GenerationRequest, now_s: float) -> None:
        """It may be computed next: from now on it concerns somebody if it is known for a death."""
        self._poison.note_start(request, now_s)

    def forget(self, request: GenerationRequest) -> None:
        """It has been refused, and will have no end to be told of."""
        self._poison.forget(request)

    def may_join(
        self, request: GenerationRequest, running: Sequence[Flight], questions: int, now_s: float
    ) -> bool:
        """Whether it may be computed beside those, by a worker that has so many questions."""
        self.recognise(request, now_s)
        if not self._poison.has_loners:
            return True
        if any(self._poison.is_loner(flight.request) for flight in running):
            return False
        return not self._poison.is_loner(request) or not (running or questions)

    def makes_way(self, request: GenerationRequest, running: Sequence[Flight]) -> bool:
        """Whether those give way to it."""
        if not request.resumed or not self._poison.is_loner(request):
            return False
        # As long as one can't give way, the others would wait for nothing.
        return not any(
            self._poison.is_loner(flight.request) or not flight.request.resume for flight in running
        )

    def admits_questions(self, head: GenerationRequest | None, flights: Sequence[Flight]) -> bool:
        """`head` is next."""
        if not self._poison.has_loners:
            return True
        if head is not None and self._poison.is_loner(head):
            return False
        return not any(self._poison.is_loner(flight.request) for flight in flights)
