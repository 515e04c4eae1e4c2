"""A model's requests: who waits, who is computed by which worker, who gives way, and the end of each. Pure.

It is told what happens by the methods `on_...`, and reaches the world through each worker's `Port` and `on_end` only.

Rule 1: an accepted request waits or is in flight until it ends, and then neither. Rule 2: a place in the batch is taken
until the worker has answered, also when the client no longer waits. Rule 3: whoever takes a worker away calls `on_lost` and
decides about each request that it gets: back to the waiting ones with `resume`, or an end with `fail`. Rule 4: what a request
is refused for, it is refused for at once: a full queue, a tier that is shed, a deadline that the predicted wait leaves
no room for.
"""

from collections.abc import Callable

from mlxsup.config.schema import Model as ModelConfig
from mlxsup.config.schema import Scheduling
from mlxsup.protocol.errors import RpcError
from mlxsup.protocol.generation import FinishReason, Priority
from mlxsup.protocol.worker_link import Embed, Generated, Step
from mlxsup.supervisor.generation.extras import extras_of
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.recovery.poison import PoisonWatch, quarantined_error
from mlxsup.supervisor.scheduling import refusals
from mlxsup.supervisor.scheduling.admission import Admission
from mlxsup.supervisor.scheduling.askers import Askers
from mlxsup.supervisor.scheduling.batch_limit import BatchLimit
from mlxsup.supervisor.scheduling.costs import CostModel
from mlxsup.supervisor.scheduling.dispatch import Dispatch
from mlxsup.supervisor.scheduling.flights import Flight, Flights, Place, Port
from mlxsup.supervisor.scheduling.isolation import Isolation
from mlxsup.supervisor.scheduling.pace import Pace
from mlxsup.supervisor.scheduling.shedding import Shedder
from mlxsup.supervisor.scheduling.speed import Speed
from mlxsup.supervisor.scheduling.track_record import TrackRecord
from mlxsup.supervisor.scheduling.waiting_room import RoomBounds, WaitingRoom

OnEnd = Callable[[GenerationRequest, RpcError | None], None]
"""Called after each end of an accepted request; the error is None for a result."""


class Scheduler:
    def __init__(
        self,
        model: ModelConfig,
        config: Scheduling,
        *,
        poison: PoisonWatch,
        on_end: OnEnd,
    ) -> None:
        self._poison = poison
        self._on_end = on_end
        self._room = WaitingRoom(
            RoomBounds(
                requests_max=model.queue_requests_max,
                tier_requests_max=model.queue_tier_requests_max,
                client_requests_max=model.queue_client_requests_max,
            ),
            age_step_s=config.age_step_s,
            quantum_tokens=config.quantum_tokens,
            shortest_first=config.shortest_first,
        )
        self._flights = Flights()
        self._isolation = Isolation(poison)
        self.askers = Askers(self._isolation, self._room, self._flights)
        self._limit = BatchLimit(model.batch_sequences_max, _inter_token_targets_s(model))
        self._shedder = Shedder(config.sojourn_target_s, config.sojourn_interval_s)
        self._costs = CostModel()
        self._record = TrackRecord()
        speed = Speed()
        self._pace = Pace(speed, self._limit)
        self._admission = Admission(
            model, self._room, self._costs, speed, self._record, preempts=config.preempt
        )
        self._dispatch = Dispatch(
            config,
            self._room,
            self._flights,
            self._limit,
            self._isolation,
            self._costs,
            why_not=self._why_not,
            fail=self.fail,
            started=self._note_start,
        )

    # What is to be seen.

    @property
    def queued(self) -> int:
        return len(self._room)

    @property
    def is_idle(self) -> bool:
        return not self._room and not self._flights

    def queued_by_priority(self) -> dict[str, int]:
        return {tier.value: count for tier, count in self._room.counts().items()}

    @property
    def queued_again(self) -> int:
        """Of those that wait, so many were computed before."""
        return self._room.begun

    def running_by_priority(self) -> dict[str, int]:
        """Those that somebody waits for."""
        running = dict.fromkeys(Priority, 0)
        for flight in self._flights:
            running[flight.request.priority] += not flight.request.ended
        return {tier.value: count for tier, count in running.items()}

    def in_flight(self, port: Port) -> list[GenerationRequest]:
        """Those that the worker behind `port` has."""
        return [flight.request for flight in self._flights.of(port)]

    def has_work(self, port: Port) -> bool:
        """Whether a worker that drains has to stay."""
        return self._flights.any_of(port) or (self._dispatch.is_place(port) and self._room.returned > 0)

    # What happens to requests.

    def on_request(self, request: GenerationRequest, now_s: float) -> None:
        """Take it, or refuse it.

        Raises:
            RpcError: OVERLOADED; LIMIT_EXCEEDED where its KV cache may never be that large.
        """
        dispatch = self._dispatch
        outlook = self._admission.admit(
            request, dispatch.place, dispatch.running, self._limit.at(now_s), now_s
        )
        if dispatch.start_at_once(request, now_s):
            return
        try:
            displaced = self._admission.enqueue(request, outlook, now_s)
        except RpcError:
            self._isolation.forget(request)
            raise
        if displaced is not None:
            self.fail(displaced, refusals.displaced(self._retry_after_ms(displaced, now_s)), now_s)
        self._fill(now_s)

    def on_cancel(self, request: GenerationRequest, now_s: float) -> None:
        """One that waits ends now, one in flight when the worker answers. One that has ended stays so."""
        if request.ended:
            return
        request.cancel_asked = True
        if self._take_out(request):
            self._finish_cancelled(request, now_s)
            self._fill(now_s)
        else:
            self._stop_computing(request)

    def on_deadline(self, request: GenerationRequest, now_s: float) -> None:
        if request.ended:
            return
        if not self._take_out(request):
            self._costs.learn_cut_off(request.order, len(request.tokens))
            self._stop_computing(request)
        self.fail(request, refusals.late(), now_s)
        self._fill(now_s)

    def on_tick(self, now_s: float) -> None:
        """Now and then while somebody waits: for what time alone changes."""
        if not any(count for tier, count in self._room.counts().items() if tier is not Priority.BACKGROUND):
            self._shedder.note_empty()
        while self._shedder.due(now_s):
            request = self._room.least_urgent_newest()
            if request is None:
                break
            self._room.remove(request)
            self.fail(request, refusals.shed_for_wait(self._retry_after_ms(request, now_s)), now_s)
        self._fill(now_s)

    # What happens in workers.

    def on_ready(self, place: Place, now_s: float) -> None:
        """A worker serves: from now on what waits goes there."""
        self._dispatch.place = place
        self._dispatch.draining = False
        self._costs.context_tokens = place.context_tokens
        self._pace.rest()
        self._fill(now_s)

    def on_step(self, port: Port, step: Step, now_s: float) -> None:
        prompt_tokens = answer_tokens = 0
        for delta in step.deltas:
            flight = self._flights.get(delta.id, port)
            if flight is None:
                continue
            request = flight.request
            if delta.tokens:
                answer_tokens += len(delta.tokens)
                if len(request.tokens) == flight.tokens_before:
                    prompt_tokens += flight.prompt_tokens
            request.deliver(delta.text, delta.tokens, now_s, extras_of(delta))
        if self._dispatch.is_place(port):
            loaded, running = len(self._room) > 0, self._dispatch.running
            self._pace.note_step(prompt_tokens, answer_tokens, running, now_s, loaded=loaded)
        if self._isolation.concerns_somebody or self._dispatch.has_urgent:
            self._fill(now_s)

    def on_done(self, port: Port, id: int, answer: Generated | RpcError, now_s: float) -> None:
        flight = self._flights.get(id, port)
        if flight is None:
            return
        self._flights.remove(id)
        request = flight.request
        if request.ended:
            self._poison.forget(request)
        elif isinstance(answer, RpcError):
            self.fail(request, answer, now_s)
        elif flight.gives_way and answer.finish_reason is FinishReason.CANCELLED and not request.cancel_asked:
            self._go_behind(request)
        else:
            self._finish(request, answer, flight, now_s)
            if isinstance(request.order, Embed) and self._dispatch.is_place(port):
                self._pace.note_embedded(answer.prompt_tokens, now_s, loaded=len(self._room) > 0)
        if not self._flights.any_of(port):
            self._pace.rest()
        self._fill(now_s)

    def on_question_answered(self, now_s: float) -> None:
        self._fill(now_s)

    def on_pause(self, port: Port) -> None:
        """Nothing more is started there; what is in flight goes on."""
        if self._dispatch.is_place(port):
            self._dispatch.place = None

    def on_drain(self, port: Port) -> bool:
        """Only who has had its turn before is started there; whether it has anything to do yet."""
        if self._dispatch.is_place(port):
            self._dispatch.draining = True
            self._room.recall()
        return self.has_work(port)

    def on_lost(self, port: Port, now_s: float) -> list[GenerationRequest]:
        """What the worker had not answered. The caller ends each that nobody has ended, or resumes it."""
        self.on_pause(port)
        unanswered = self._flights.of(port)
        for flight in unanswered:
            request = flight.request
            self._flights.remove(request.id)
            if request.ended:
                self._poison.forget(request)
            elif request.cancel_asked:
                self._finish_cancelled(request, now_s)
        self.askers.look(now_s)
        return [flight.request for flight in unanswered]

    def resume(self, requests: list[GenerationRequest], now_s: float) -> None:
        """Back to the head of those that wait, in their order; they go on from what was delivered."""
        for request in reversed(requests):
            request.note_resume()
            self._room.put_back(request, self._admission.cost(request))
        self._fill(now_s)

    def fail(self, request: GenerationRequest, error: RpcError, now_s: float) -> None:
        request.fail(refusals.with_progress(error, request))
        self._note_end(request, error, now_s)

    def fail_queued(self, error: RpcError, now_s: float) -> None:
        self._fail_all(list(self._room), error, now_s)

    def fail_newcomers(self, error: RpcError, now_s: float) -> None:
        """Those that wait, but for who has had its turn and may have it again in the worker that is there."""
        if self._dispatch.place is None:
            self.fail_queued(error, now_s)
            return
        self._room.recall()
        self._fail_all(list(self._room)[self._room.returned :], error, now_s)

    # What policies want.

    def limit_crowd(self, sequences_max: int, until_s: float) -> None:
        """More together were too much for the memory."""
        self._limit.crowd(sequences_max, until_s)

    def limit_batch(self, sequences_max: int | None, now_s: float) -> None:
        """Compute no more together than that; None: than is configured."""
        self._limit.hold(sequences_max)
        self._fill(now_s)

    def keep_alone(self, now_s: float, *, alone: bool) -> None:
        """Whether each is computed alone, since the worker can't compute several together."""
        self._limit.keep_alone(alone=alone)
        self._fill(now_s)

    def shed(self, tier: Priority, away_s: float | None, now_s: float) -> None:
        """Refuse newcomers of that tier, and end those of it that wait and have had no turn yet; None: no more.

        They are told to stay away for at least `away_s`.
        """
        self._admission.shed(tier, away_s)
        if away_s is not None:
            for request in list(self._room):
                if request.priority is tier and request.marks.dispatched_s is None:
                    self._room.remove(request)
                    hint_ms = self._retry_after_ms(request, now_s)
                    self.fail(request, refusals.tier_is_shed(tier, away_s, hint_ms), now_s)

    # How it is done.

    def _fill(self, now_s: float) -> None:
        self._dispatch.fill(now_s)
        self.askers.look(now_s)

    def _why_not(self, request: GenerationRequest, now_s: float) -> RpcError | None:
        entry = self._poison.find(request.model, request.order)
        if entry is not None:
            # The same was sent twice, and the other one has been found out meanwhile.
            return quarantined_error(entry)
        return refusals.hopeless() if self._admission.is_hopeless(request, now_s) else None

    def _note_start(self, request: GenerationRequest, now_s: float) -> None:
        if request.marks.dispatched_s is None:
            request.marks.dispatched_s = now_s
            self._record.note_start(request, now_s)
            self._shedder.note_start(now_s - request.marks.accepted_s, request.priority, now_s)

    def _go_behind(self, request: GenerationRequest) -> None:
        """It has given way: to those that have to be alone, behind whom it goes on, or to a more urgent one."""
        if self._isolation.concerns_somebody or self._dispatch.draining:
            self._room.put_behind(request, self._admission.cost(request))
        else:
            self._room.put_again(request, self._admission.cost(request))

    def _take_out(self, request: GenerationRequest) -> bool:
        """Whether it was waiting. What a worker has kept for it is kept no more."""
        if not self._room.remove(request):
            return False
        place = self._dispatch.place
        if place is not None and request.marks.dispatched_s is not None:
            place.port.cancel(request.id, goes_on=False)
        return True

    def _stop_computing(self, request: GenerationRequest) -> None:
        flight = self._flights.find(request.id)
        if flight is not None:
            flight.port.cancel(request.id, goes_on=False)

    def _retry_after_ms(self, request: GenerationRequest, now_s: float) -> int:
        running = self._dispatch.running
        return self._admission.retry_after_ms(request, running, self._limit.at(now_s), now_s)

    def _finish(self, request: GenerationRequest, answer: Generated, flight: Flight, now_s: float) -> None:
        if answer.finish_reason is not FinishReason.CANCELLED:
            self._poison.note_completed(request)
            self._costs.learn(request, answer.prompt_tokens, len(request.tokens))
        request.finish(answer, flight.generation, now_s)
        self._note_end(request, None, now_s)

    def _finish_cancelled(self, request: GenerationRequest, now_s: float) -> None:
        request.finish_cancelled(now_s)
        self._note_end(request, None, now_s)

    def _fail_all(self, requests: list[GenerationRequest], error: RpcError, now_s: float) -> None:
        for request in requests:
            self._room.remove(request)
            self.fail(request, error, now_s)

    def _note_end(self, request: GenerationRequest, error: RpcError | None, now_s: float) -> None:
        self._record.note_end(request, error)
        if request.id not in self._flights:
            # Else the worker may yet die of it: until it has answered, the request is what it was.
            self._poison.forget(request)
        self._on_end(request, error)
        self.askers.look(now_s)


def _inter_token_targets_s(model: ModelConfig) -> dict[Priority, float]:
    return {tier: slo.inter_token_s for tier, slo in model.slo.items() if slo.inter_token_s is not None}
