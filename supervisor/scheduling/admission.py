"""Whether a request is let in, and what waits for it. Pure.

A refusal comes at once, and its hint says how long it is until what waits or runs now, and goes first, has been answered.
"""

from collections.abc import Sequence

from mlxsup.config.schema import Model as ModelConfig
from mlxsup.protocol.generation import Priority
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.scheduling import refusals
from mlxsup.supervisor.scheduling.costs import CostModel
from mlxsup.supervisor.scheduling.flights import Flight, Place
from mlxsup.supervisor.scheduling.forecast import Outlook, retry_after_ms, wait_s
from mlxsup.supervisor.scheduling.order import RANK
from mlxsup.supervisor.scheduling.speed import Speed
from mlxsup.supervisor.scheduling.track_record import TrackRecord
from mlxsup.supervisor.scheduling.waiting_room import Overfull, WaitingRoom


class Admission:
    """`preempts`: interactive requests take the place of less urgent ones."""

    def __init__(
        self,
        model: ModelConfig,
        room: WaitingRoom,
        costs: CostModel,
        speed: Speed,
        record: TrackRecord,
        *,
        preempts: bool,
    ) -> None:
        self._kv_bytes_max = model.kv_bytes_max
        self._room = room
        self._costs = costs
        self._speed = speed
        self._record = record
        self._preempts = preempts
        # For how long at least, in seconds, those who are refused had better stay away.
        self._shed: dict[Priority, float] = {}

    def shed(self, tier: Priority, away_s: float | None) -> None:
        """Refuse newcomers of that tier, who had better stay away for so long at least; None: no more."""
        if away_s is None:
            self._shed.pop(tier, None)
        else:
            self._shed[tier] = away_s

    def admit(
        self,
        request: GenerationRequest,
        place: Place | None,
        running: Sequence[Flight],
        limit: int,
        now_s: float,
    ) -> Outlook | None:
        """Check all but the bounds of the queue. `limit` is the batch's; None while nothing is known of the model's speed.

        Raises:
            RpcError: OVERLOADED; LIMIT_EXCEEDED where its KV cache may never be that large.
        """
        outlook = self.outlook(request, running, limit, now_s)
        hint_ms = retry_after_ms(outlook)
        if request.priority in self._shed:
            raise refusals.tier_is_shed(request.priority, self._shed[request.priority], hint_ms)
        if place is not None and self._kv_bytes_max is not None:
            needed = place.kv_bytes(self._costs.prompt_tokens(request), request.order.max_tokens)
            if needed > self._kv_bytes_max:
                raise refusals.cache_too_large(needed, self._kv_bytes_max)
        if outlook is not None and outlook.wait_s > 0 and request.deadline_s is not None:
            left_s = request.deadline_s - now_s
            if outlook.seconds * self._record.caution > left_s:
                raise refusals.would_be_late(outlook, left_s, hint_ms)
        return outlook

    def enqueue(
        self, request: GenerationRequest, outlook: Outlook | None, now_s: float
    ) -> GenerationRequest | None:
        """Among those that wait; the one that has to leave for it, if one has to.

        Raises:
            RpcError: OVERLOADED, where a bound is reached.
        """
        try:
            displaced = self._room.put(request, self.cost(request), now_s)
        except Overfull as full:
            raise refusals.full(full, retry_after_ms(outlook)) from None
        if outlook is not None:
            self._record.note_admitted(request, outlook.wait_s)
        return displaced

    def cost(self, request: GenerationRequest) -> int:
        """In tokens, of what is left of it."""
        prompt = self._costs.prompt_tokens(request) * self._speed.ratio
        return max(1, round(prompt + self._costs.tokens_left(request.order, len(request.tokens))))

    def outlook(
        self, request: GenerationRequest, running: Sequence[Flight], limit: int, now_s: float
    ) -> Outlook | None:
        """For one that comes now; None while nothing is known of the model's speed."""
        if not self._speed.is_known:
            return None
        order = request.order
        service_s = self._speed.seconds(self._costs.prompt_tokens(request) * self._speed.ratio)
        service_s += self._costs.answer_tokens_likely_max(order) * self._speed.step_s
        return Outlook(self._wait_s(request, running, limit, now_s), service_s)

    def retry_after_ms(
        self, request: GenerationRequest, running: Sequence[Flight], limit: int, now_s: float
    ) -> int:
        outlook = self.outlook(request, running, limit, now_s)
        return retry_after_ms(outlook)

    def is_hopeless(self, request: GenerationRequest, now_s: float) -> bool:
        """Not even its first token would come in time: no worker computes for nobody."""
        if request.deadline_s is None or request.marks.dispatched_s is not None or not self._speed.is_known:
            return False
        prompt = self._costs.prompt_tokens(request) * self._speed.ratio
        return now_s + self._speed.seconds(prompt) > request.deadline_s

    def _wait_s(
        self, request: GenerationRequest, running: Sequence[Flight], limit: int, now_s: float
    ) -> float:
        urgent = self._preempts and request.priority is Priority.INTERACTIVE
        if urgent and any(RANK[flight.request.priority] for flight in running):
            return 0.0
        ahead = self._room.ahead(request.priority, request.client, now_s)
        predicted_s = wait_s(
            running_s=self._speed.seconds(sum(map(self._tokens_left, running))),
            ahead_s=self._speed.seconds(ahead),
            typical_s=self._speed.seconds(self.cost(request)),
            places=limit,
            taken=len(running),
        )
        return self._record.correct(predicted_s, request.priority)

    def _tokens_left(self, flight: Flight) -> float:
        request = flight.request
        left = self._costs.tokens_left(request.order, len(request.tokens))
        if len(request.tokens) == flight.tokens_before:
            left += flight.prompt_tokens * self._speed.ratio
        return left
