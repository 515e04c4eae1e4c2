"""Finds the request that kills workers, and lets its neighbours live. Pure.

Rule 1: only a death that a request can have caused makes suspects, of all that were in flight.
Rule 2: while there are suspects, each is computed alone; it is cleared once it has got `clear_tokens` beyond where it
was when its worker died, or has ended. Rule 3: who is in flight alone at a second such death, or was alone at both, is
quarantined by the digest of what it asked for: the same request is refused from then on, whoever sends it.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable

import msgspec

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.worker_link import Generate
from mlxsup.supervisor.generation.request import GenerationRequest

_encode = msgspec.json.Encoder(order="deterministic").encode


class QuarantinedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of one: no word of its prompt."""

    digest: str
    model: str
    deaths: int
    death_class: str


class PoisonWatch:
    """For one model. `quarantine_max` digests are remembered, the oldest go first; `known` are from earlier."""

    def __init__(
        self, clear_tokens: int, quarantine_max: int, known: Iterable[QuarantinedRequest] = ()
    ) -> None:
        self._clear_tokens = clear_tokens
        self._quarantine_max = quarantine_max
        # Tokens that a suspect had when its worker died.
        self._suspects: dict[int, int] = {}
        self._quarantined: OrderedDict[str, QuarantinedRequest] = OrderedDict()
        for entry in known:
            self.quarantine(entry)

    def note_death(self, in_flight: list[GenerationRequest], death_class: str) -> list[GenerationRequest]:
        """A death that a request can have caused. Gives those of `in_flight` that are quarantined now."""
        guilty = [request for request in in_flight if len(in_flight) == 1 and request.id in self._suspects]
        for request in guilty:
            del self._suspects[request.id]
            self.quarantine(
                QuarantinedRequest(
                    digest=request_digest(request.model, request.order),
                    model=request.model,
                    deaths=2,
                    death_class=death_class,
                )
            )
        for request in in_flight:
            if request not in guilty:
                self._suspects[request.id] = len(request.tokens)
        return guilty

    def quarantine(self, entry: QuarantinedRequest) -> None:
        self._quarantined[entry.digest] = entry
        while len(self._quarantined) > self._quarantine_max:
            self._quarantined.popitem(last=False)

    def release(self, model: str) -> set[str]:
        """Let the model's quarantined requests try again; their digests."""
        released = {entry.digest for entry in self._quarantined.values() if entry.model == model}
        for digest in released:
            del self._quarantined[digest]
        return released

    def find(self, model: str, order: Generate) -> QuarantinedRequest | None:
        """The entry that refuses this request, if there is one."""
        if not self._quarantined:
            return None
        return self._quarantined.get(request_digest(model, order))

    def listed(self) -> list[QuarantinedRequest]:
        return list(self._quarantined.values())

    @property
    def has_suspects(self) -> bool:
        return bool(self._suspects)

    def is_suspect(self, request: GenerationRequest) -> bool:
        """Asked again after each of its steps: a suspect that gets on is cleared."""
        at_death = self._suspects.get(request.id)
        if at_death is None:
            return False
        if request.ended or len(request.tokens) >= at_death + self._clear_tokens:
            del self._suspects[request.id]
            return False
        return True

    def forget(self, request: GenerationRequest) -> None:
        """It has ended."""
        self._suspects.pop(request.id, None)


def quarantined_error(entry: QuarantinedRequest) -> RpcError:
    """For everybody who sends it from now on, or has sent it before and waits."""
    return RpcError(
        ErrorKind.QUARANTINED,
        f"this request has ended {entry.deaths} workers ({entry.death_class}) and is refused; change it, or let "
        "it try again with `mlxsup deaths --forget`",
    )


def request_digest(model: str, order: Generate) -> str:
    """SHA-256 (hex) over the model and all that decides what is computed, but for what was delivered before.

    The seed is part of it only where it was asked for: one that the supervisor drew differs each time.
    """
    same = msgspec.structs.replace(order, delivered_tokens=[], delivered_chars=0)
    if not order.seeded:
        same = msgspec.structs.replace(same, sampling=msgspec.structs.replace(order.sampling, seed=0))
    return hashlib.sha256(_encode((model, same))).hexdigest()
