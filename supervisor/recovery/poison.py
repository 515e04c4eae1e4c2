"""Finds the request that kills workers, and lets its neighbours live. Pure.

Rule 1: only a death that a request can have caused makes suspects, of all that the worker had not answered, also when
nobody waited for them any more. Rule 2: while there are suspects, each is computed alone; it is cleared once it has got
`clear_tokens` beyond where it was when its worker died, or is complete. Rule 3: who is in flight alone, with no question
beside it, at a second such death, or was alone at both, is quarantined by the digest of what it asked for: the same
request is refused from then on, whoever sends it. Rule 4: what is sent again within `memory_s` of such a death is the
same suspect, so that neither an end in between nor another id hides it; once one of its kind is cleared, the digest is.
Rule 5: who is isolated for another reason is computed alone, too, and cleared alike, but no death convicts it that did
not make it a suspect. Rule 6: what failed alone is computed alone whenever it is sent again within `memory_s`, and then
has one try against deaths of that class.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable

import msgspec

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.worker_link import URGENCY_NORMAL, Generate, Order
from mlxsup.supervisor.generation.request import GenerationRequest

_encode = msgspec.json.Encoder(order="deterministic").encode


class QuarantinedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of one: no word of its prompt."""

    digest: str
    model: str
    deaths: int
    death_class: str


class _Sighting(msgspec.Struct, frozen=True):
    """Of a digest: when it was last in flight at a death, of which class, and how many tokens it had got there at most."""

    at_s: float
    tokens: int
    death_class: str


class PoisonWatch:
    """For one model. `known` are quarantined from earlier.

    So many digests as `quarantine_max` are remembered of those that are quarantined, and as many each for `memory_s` of
    those that were in flight at a death, and of those that failed alone; the oldest go first.
    """

    def __init__(
        self,
        clear_tokens: int,
        quarantine_max: int,
        memory_s: float,
        known: Iterable[QuarantinedRequest] = (),
    ) -> None:
        self.clear_tokens = clear_tokens
        self._quarantine_max = quarantine_max
        self._memory_s = memory_s
        # By the request's id: tokens that it had when its worker died.
        self._suspects: dict[int, int] = {}
        self._isolated: dict[int, int] = {}
        # Oldest first.
        self._seen: OrderedDict[str, _Sighting] = OrderedDict()
        self._failed: OrderedDict[str, _Sighting] = OrderedDict()
        # Of requests that have not ended: a long prompt is digested once.
        self._digests: dict[int, str] = {}
        self._quarantined: OrderedDict[str, QuarantinedRequest] = OrderedDict()
        for entry in known:
            self.quarantine(entry)

    def note_death(
        self, in_flight: list[GenerationRequest], death_class: str, now_s: float, questions: int = 0
    ) -> list[GenerationRequest]:
        """A death that a request can have caused. Gives those of `in_flight` that are quarantined now.

        `in_flight` are all that the worker had not answered; some of them may have ended. Beside them it had so many
        `questions` that are no requests, each of which can have been to blame.
        """
        self._forget_old(now_s)
        if len(in_flight) == 1 and not questions:
            (request,) = in_flight
            digest = self._digest(request)
            # Clears one that has got on since: where nothing waits nobody has asked meanwhile.
            if self._is_suspect(request) or digest in self._seen:
                self._clear(request)
                self.quarantine(
                    QuarantinedRequest(digest=digest, model=request.model, deaths=2, death_class=death_class)
                )
                return [request]
        for request in in_flight:
            self._remember(self._seen, request, death_class, now_s)
            if not request.ended:
                self._suspects[request.id] = len(request.tokens)
        return []

    def isolate(self, request: GenerationRequest) -> None:
        """Compute it alone for a while, so that it does no harm to others nor they to it."""
        self._isolated[request.id] = len(request.tokens)

    def note_failed_alone(self, request: GenerationRequest, death_class: str, now_s: float) -> None:
        """It has used up its tries, and was not found guilty."""
        self._remember(self._failed, request, death_class, now_s)

    def has_failed_alone(self, request: GenerationRequest, death_class: str) -> bool:
        """Or the same, whoever sent it."""
        failed = self._failed.get(self._digest(request)) if self._failed else None
        return failed is not None and failed.death_class == death_class

    def note_start(self, request: GenerationRequest, now_s: float) -> None:
        """It is to be computed: alone, if the same was in flight at a death, whoever sent it then."""
        self._forget_old(now_s)
        # As far as the one before: what kills late would be cleared again and again.
        for seen, alone in ((self._seen, self._suspects), (self._failed, self._isolated)):
            if seen and request.id not in alone:
                sighting = seen.get(self._digest(request))
                if sighting is not None:
                    alone[request.id] = sighting.tokens

    def note_completed(self, request: GenerationRequest) -> None:
        """It has got all that it asked for, and its worker lives."""
        self._clear(request)
        self._release(request)

    def quarantine(self, entry: QuarantinedRequest) -> None:
        self._quarantined[entry.digest] = entry
        while len(self._quarantined) > self._quarantine_max:
            self._quarantined.popitem(last=False)

    def release(self, model: str) -> set[str]:
        """Let the model's quarantined requests try again, and suspect nothing that is sent; their digests."""
        self._seen.clear()
        self._failed.clear()
        released = {entry.digest for entry in self._quarantined.values() if entry.model == model}
        for digest in released:
            del self._quarantined[digest]
        return released

    def count_quarantined(self, model: str) -> int:
        return sum(entry.model == model for entry in self._quarantined.values())

    def find(self, model: str, order: Order) -> QuarantinedRequest | None:
        """The entry that refuses this request, if there is one."""
        if not self._quarantined:
            return None
        return self._quarantined.get(request_digest(model, order))

    @property
    def has_loners(self) -> bool:
        return bool(self._suspects or self._isolated)

    def is_loner(self, request: GenerationRequest) -> bool:
        """Whether it is to be computed alone; asked again after each of its steps, since who gets on is cleared."""
        at_death = self._isolated.get(request.id)
        if at_death is not None and len(request.tokens) >= at_death + self.clear_tokens:
            self._release(request)
        return self._is_suspect(request) or request.id in self._isolated

    def _is_suspect(self, request: GenerationRequest) -> bool:
        at_death = self._suspects.get(request.id)
        if at_death is None:
            return False
        if len(request.tokens) >= at_death + self.clear_tokens:
            self._clear(request)
            return False
        return True

    def forget(self, request: GenerationRequest) -> None:
        """It has ended, and no worker has it any more. What it asked for may still be suspicious."""
        self._suspects.pop(request.id, None)
        self._isolated.pop(request.id, None)
        self._digests.pop(request.id, None)

    def _clear(self, request: GenerationRequest) -> None:
        self._suspects.pop(request.id, None)
        if self._seen:
            self._seen.pop(self._digest(request), None)

    def _release(self, request: GenerationRequest) -> None:
        self._isolated.pop(request.id, None)
        if self._failed:
            self._failed.pop(self._digest(request), None)

    def _remember(
        self, seen: OrderedDict[str, _Sighting], request: GenerationRequest, death_class: str, now_s: float
    ) -> None:
        digest = self._digest(request)
        before = seen.pop(digest, None)
        tokens = len(request.tokens)
        at_most = tokens if before is None else max(tokens, before.tokens)
        seen[digest] = _Sighting(now_s, at_most, death_class)
        while len(seen) > self._quarantine_max:
            seen.popitem(last=False)

    def _forget_old(self, now_s: float) -> None:
        for seen in (self._seen, self._failed):
            while seen and now_s - next(iter(seen.values())).at_s > self._memory_s:
                seen.popitem(last=False)

    def _digest(self, request: GenerationRequest) -> str:
        digest = self._digests.get(request.id)
        if digest is None:
            digest = request_digest(request.model, request.order)
            if not request.ended:
                self._digests[request.id] = digest
        return digest


def quarantined_error(entry: QuarantinedRequest) -> RpcError:
    """For everybody who sends it from now on, or has sent it before and waits."""
    return RpcError(
        ErrorKind.QUARANTINED,
        f"this request has ended {entry.deaths} workers ({entry.death_class}) and is refused; change it, or let "
        "it try again with `mlxsup deaths --forget`",
    )


def request_digest(model: str, order: Order) -> str:
    """SHA-256 (hex) over the model and all that decides what is computed; not when, how urgently, or what was delivered before.

    The seed is part of it only where it was asked for: one that the supervisor drew differs each time.
    """
    same = msgspec.structs.replace(order, urgency=URGENCY_NORMAL, reads_first=False)
    if isinstance(same, Generate):
        same = _as_sent(same)
    return hashlib.sha256(_encode((model, same))).hexdigest()


def _as_sent(order: Generate) -> Generate:
    same = msgspec.structs.replace(
        order,
        accepted_unix_s=None,
        delivered_tokens=[],
        delivered_chars=0,
        delivered_reasoning_chars=0,
        delivered_tool_calls=0,
    )
    if order.seeded:
        return same
    return msgspec.structs.replace(same, sampling=msgspec.structs.replace(order.sampling, seed=0))
