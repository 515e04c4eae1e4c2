"""What is computed next to what, in the worker that serves. Pure.

The batch holds so many requests as its limit, and so many bytes of KV caches at their bounds, but one request always. Who
leaves for an interactive one has left its place already, since the worker hears of it before it hears of the other.
"""

from collections.abc import Callable

import msgspec

from mlxsup.config.schema import Scheduling
from mlxsup.protocol.errors import RpcError
from mlxsup.protocol.generation import Priority
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.scheduling.batch_limit import BatchLimit
from mlxsup.supervisor.scheduling.costs import CostModel
from mlxsup.supervisor.scheduling.flights import Flight, Flights, Place, Port
from mlxsup.supervisor.scheduling.isolation import Isolation
from mlxsup.supervisor.scheduling.order import RANK
from mlxsup.supervisor.scheduling.preemption import (
    choose_less_urgent,
    choose_of_crowd,
    has_less_than_its_share,
)
from mlxsup.supervisor.scheduling.waiting_room import WaitingRoom

WhyNot = Callable[[GenerationRequest, float], RpcError | None]
"""For one that has waited: the error that ends it now, or None."""


class Dispatch:
    def __init__(
        self,
        config: Scheduling,
        room: WaitingRoom,
        flights: Flights,
        limit: BatchLimit,
        isolation: Isolation,
        costs: CostModel,
        *,
        why_not: WhyNot,
        fail: Callable[[GenerationRequest, RpcError, float], None],
        started: Callable[[GenerationRequest, float], None],
    ) -> None:
        self._config = config
        self._room = room
        self._flights = flights
        self._limit = limit
        self._isolation = isolation
        self._costs = costs
        self._why_not = why_not
        self._fail = fail
        self._started = started
        self.place: Place | None = None
        self.draining = False

    @property
    def running(self) -> list[Flight]:
        """In the worker that serves."""
        return [] if self.place is None else self._flights.of(self.place.port)

    @property
    def has_urgent(self) -> bool:
        """Whether somebody waits who may take another one's place, as soon as one has got far enough to leave it."""
        return self._config.preempt and self._room.peek_tier(Priority.INTERACTIVE) is not None

    def is_place(self, port: Port) -> bool:
        return self.place is not None and self.place.port is port

    def fill(self, now_s: float) -> None:
        self._fill_batch(now_s)
        self._let_urgent_in(now_s)

    def _fill_batch(self, now_s: float) -> None:
        while self.place is not None:
            request = self._room.peek(now_s)
            if request is None or (self.draining and not self._room.returned):
                return
            running = self.running
            if not self._has_room(request, running, now_s) or not self._isolation.may_join(
                request, running, self.place.port.questions, now_s
            ):
                if self._isolation.makes_way(request, running):
                    for flight in running:
                        self._give_way(flight)
                return
            self._room.pop(now_s)
            self._start_or_end(request, self.place, now_s)

    def start_at_once(self, request: GenerationRequest, now_s: float) -> bool:
        """Whether a newcomer has got the place of another one, and need not wait at all."""
        place = self.place
        if place is None or not self._goes_before_all(request, now_s) or not self._make_room(request, now_s):
            return False
        self._start_or_end(request, place, now_s)
        return True

    def _goes_before_all(self, newcomer: GenerationRequest, now_s: float) -> bool:
        """Nobody who waits is as urgent; or nobody is more so, and its client has none among them."""
        if newcomer.priority is Priority.INTERACTIVE:
            return self._room.peek_tier(Priority.INTERACTIVE) is None
        head = self._room.peek(now_s)
        if head is None or self._room.returned or self._room.count_of(newcomer.client):
            return False
        return RANK[head.priority] >= RANK[newcomer.priority]

    def _let_urgent_in(self, now_s: float) -> None:
        while self.place is not None and (urgent := self._room.peek_tier(Priority.INTERACTIVE)) is not None:
            if not self._make_room(urgent, now_s):
                return
            self._room.take(urgent)
            self._start_or_end(urgent, self.place, now_s)

    def _make_room(self, request: GenerationRequest, now_s: float) -> bool:
        """Whether it fits, once so many have left as it takes; nobody leaves for one that would not fit even then."""
        if not self._config.preempt or self.draining:
            return False
        self._isolation.recognise(request, now_s)
        if self._isolation.concerns_somebody:
            # Somebody is to be computed alone first; or this one is, and waits for its turn.
            return False
        staying = self.running
        leaving: list[Flight] = []
        while not self._has_room(request, staying, now_s):
            flight = None
            if request.priority is Priority.INTERACTIVE:
                flight = choose_less_urgent(staying, self._config)
            if flight is None:
                flight = choose_of_crowd(staying, request, self._config)
            if flight is None:
                return False
            leaving.append(flight)
            staying = [other for other in staying if other is not flight]
        for flight in leaving:
            flight.request.preempted += 1
            self._give_way(flight)
        return True

    def _has_room(self, request: GenerationRequest, running: list[Flight], now_s: float) -> bool:
        assert self.place is not None
        staying = [flight for flight in running if not flight.gives_way]
        if len(staying) >= self._limit.at(now_s):
            return False
        bytes_max = self.place.kv_bytes_max
        if bytes_max is None or not staying:
            return True
        needed = self.place.kv_bytes(self._costs.prompt_tokens(request), request.order.max_tokens)
        return sum(flight.kv_bytes for flight in staying) + needed <= bytes_max

    def _start_or_end(self, request: GenerationRequest, place: Place, now_s: float) -> None:
        error = self._why_not(request, now_s)
        if error is not None:
            self._fail(request, error, now_s)
            return
        self._started(request, now_s)
        reads_first = has_less_than_its_share(self.running, request.client)
        prompt_tokens = self._costs.prompt_tokens(request)
        self._flights.add(
            Flight(
                request,
                place.port,
                place.generation,
                tokens_before=len(request.tokens),
                prompt_tokens=prompt_tokens,
                kv_bytes=place.kv_bytes(prompt_tokens, request.order.max_tokens),
            )
        )
        order = msgspec.structs.replace(
            request.remaining_order(), urgency=RANK[request.priority], reads_first=reads_first
        )
        try:
            place.port.start(request.id, order)
        except RpcError as refusal:
            self._flights.remove(request.id)
            self._fail(request, refusal, now_s)

    def _give_way(self, flight: Flight) -> None:
        if not flight.gives_way:
            flight.gives_way = True
            flight.port.cancel(flight.request.id, goes_on=True)
