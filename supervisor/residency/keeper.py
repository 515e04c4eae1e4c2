"""Which models are in memory, which has to make room, and which is next. Pure.

Rule 1: a model is admitted when what it needs is free, or when it is alone: then only the whole budget bounds it. What
those before it wait for is never given away. Rule 2: an idle model makes room at once, the one that was used longest ago
first, and those that were preloaded last; but not before `residency_min_s` for one that had to make room lately itself: two
that take turns are served in bursts, not one by one. Rule 3: a busy one makes room when it was resident for
`residency_min_s`, and the other waited for `swap_wait_s`; for a more urgent one than all that it has, without that. It ends
what runs first. Rule 4: one that has waited for `swap_wait_s` is passed by nobody any more. So whoever wants a model has it
after `swap_wait_s`, and for each one that waited before it `residency_min_s`, a drain and a load.
Rule 5: pinned models stay, and busy ones that were preloaded; whom that leaves no room is told.
"""

import math
from collections.abc import Iterator
from typing import Protocol

from mlxsup.protocol.errors import RpcError
from mlxsup.supervisor.residency.eviction import Eviction
from mlxsup.supervisor.residency.ledger import Footprint, Ledger
from mlxsup.supervisor.residency.refusal import Refusal, megabytes
from mlxsup.supervisor.residency.room import Room
from mlxsup.supervisor.residency.tenant import HOLDING, Demand, Phase, Tenant, Terms

# What the system says of its memory changes without an event.
_LOOK_S = 0.5
# The memory of a process may come back a while after its end: nobody else has to go for it meanwhile.
_COMES_BACK_S = 2.0


class Effects(Protocol):
    """The world. None of this calls back."""

    def admit(self, model: str) -> None:
        """Its worker may be started."""
        ...

    def evict(self, model: str) -> None:
        """Its worker is to end what runs and to start nothing new, and then to end; what waits goes on waiting."""
        ...

    def refuse(self, model: str, error: RpcError) -> None:
        """It can't be had, and nobody waits for it here any more."""
        ...

    def read_ahead(self, model: str) -> None:
        """It will be loaded soon."""
        ...

    def demand(self, model: str) -> Demand:
        """What it has to do, running and waiting."""
        ...


class Keeper:
    """Of one machine. Events come with the moment of the monotonic clock at which they happen."""

    def __init__(
        self,
        ledger: Ledger,
        effects: Effects,
        *,
        residency_min_s: float,
        swap_wait_s: float,
        blocked_s: float,
    ) -> None:
        """`blocked_s`: so long a model waits for room that pinned ones leave it nowhere."""
        self._ledger = ledger
        self._effects = effects
        self._swap_wait_s = swap_wait_s
        self._tenants: dict[str, Tenant] = {}
        self._room = Room(self._tenants.values(), ledger)
        self._eviction = Eviction(
            self._tenants.values(),
            ledger,
            effects.demand,
            residency_min_s=residency_min_s,
            swap_wait_s=swap_wait_s,
        )
        self._refusal = Refusal(
            self._tenants.values(), ledger, effects.demand, blocked_s=blocked_s, swap_wait_s=swap_wait_s
        )
        self._back_s = -math.inf

    def add(self, model: str, terms: Terms) -> None:
        footprint = Footprint(kv_bytes_max=terms.kv_bytes_max, prefix_bytes_max=terms.prefix_bytes_max)
        self._tenants[model] = Tenant(name=model, terms=terms, footprint=footprint)

    def get(self, model: str) -> Tenant:
        return self._tenants[model]

    def __iter__(self) -> Iterator[Tenant]:
        return iter(self._tenants.values())

    def holds(self, model: str) -> bool:
        """Whether it may have a worker without asking."""
        return self._tenants[model].phase in HOLDING

    # What happens.

    def on_terms(self, model: str, terms: Terms, now_s: float) -> None:
        self._tenants[model].terms = terms
        self._decide(now_s)

    def on_wanted(self, model: str, estimate_bytes: int, now_s: float) -> None:
        """Somebody waits for a model that has no memory; `estimate_bytes` is for its process and its weights."""
        tenant = self._tenants[model]
        assert tenant.phase is Phase.OUT, tenant.phase
        tenant.footprint.estimate_bytes = estimate_bytes
        tenant.phase, tenant.waits_since_s, tenant.used_s = Phase.WAITING, now_s, now_s
        tenant.had_to_return = now_s - tenant.made_room_s < self._swap_wait_s
        self._decide(now_s)
        if tenant.phase is Phase.WAITING and self._is_next(tenant, now_s):
            self._effects.read_ahead(model)

    def on_unwanted(self, model: str, now_s: float) -> None:
        """Nobody waits for it any more."""
        tenant = self._tenants[model]
        if tenant.phase is Phase.WAITING:
            self._leave_queue(tenant, Phase.OUT)
            self._decide(now_s)

    def on_hurry(self, model: str, now_s: float) -> None:
        """Somebody asks for it by hand: that it had to make room lately counts no more."""
        tenant = self._tenants[model]
        tenant.made_room_s, tenant.had_to_return = -math.inf, False
        self._decide(now_s)

    def on_workers(self, model: str, workers: int) -> None:
        """It has so many, at least one."""
        tenant, claim = self._tenants[model], self._ledger.get(model)
        assert claim is not None, tenant.phase
        claim.workers = workers
        if tenant.phase is Phase.RESTARTING:
            tenant.phase = Phase.LOADING

    def may_double(self, model: str) -> bool:
        """Whether there is room for a second worker of it, which nobody waits for."""
        tenant = self._tenants[model]
        if tenant.phase is not Phase.RESIDENT or any(other.phase is Phase.WAITING for other in self):
            return False
        return self._ledger.free_bytes() >= self._room.needed_bytes(tenant)

    def on_ready(self, model: str, resident_bytes: int, kv_bytes_max: int, now_s: float) -> None:
        """A worker of it has just been loaded; `kv_bytes_max` as far as it is bounded, else 0."""
        tenant = self._tenants[model]
        tenant.footprint.loaded_bytes = resident_bytes
        tenant.footprint.kv_bytes_max = kv_bytes_max
        if tenant.phase is Phase.LOADING:
            tenant.phase, tenant.used_s = Phase.RESIDENT, now_s
            tenant.resident_since_s = max(tenant.resident_since_s, now_s)
        self._room.measure(tenant)
        self._decide(now_s)

    def on_measured(self, model: str, resident_bytes: list[int], now_s: float) -> None:
        """What each of its workers holds."""
        tenant, claim = self._tenants[model], self._ledger.get(model)
        if claim is None:
            return
        claim.resident_bytes = sum(resident_bytes)
        tenant.footprint.note_resident(max(resident_bytes, default=0))
        self._room.measure(tenant)
        self._relieve(now_s)

    def on_used(self, model: str, now_s: float) -> None:
        """It was given something to do, or has ended it."""
        self._tenants[model].used_s = now_s
        if self._waiting(now_s) and not self._effects.demand(model).busy:
            self._decide(now_s)

    def on_lost(self, model: str, now_s: float) -> None:
        """It has no worker any more, and wants one: what it held is kept for that, unless it was to make room."""
        tenant, claim = self._tenants[model], self._ledger.get(model)
        if tenant.phase not in HOLDING or claim is None:
            self.on_gone(model, now_s)
            return
        tenant.footprint.note_end()
        claim.resident_bytes, claim.workers = 0, 1
        tenant.phase = Phase.RESTARTING
        self._decide(now_s)

    def on_gone(self, model: str, now_s: float) -> None:
        """It has no worker any more, nor is one to come."""
        tenant = self._tenants[model]
        if tenant.phase is not Phase.WAITING:
            tenant.footprint.note_end()
            tenant.phase = Phase.OUT
        if model in self._ledger and not self._ledger.has_budget:
            self._back_s = now_s + _COMES_BACK_S
        self._ledger.close(model)
        self._decide(now_s)

    def on_tick(self, now_s: float) -> None:
        for tenant in self:
            if self._idle_until_s(tenant) <= now_s and not self._effects.demand(tenant.name).busy:
                self._evict(tenant)
        self._relieve(now_s)
        self._decide(now_s)

    def next_look_s(self, now_s: float) -> float:
        """When `on_tick` has something to do, if nothing happens before."""
        if self._waiting(now_s):
            return now_s + _LOOK_S
        # One that has work is looked at again when that may be over.
        ends_s = ((self._idle_until_s(tenant), tenant.terms.idle_ttl_s) for tenant in self)
        return min(
            (end_s if end_s > now_s else now_s + (ttl_s or 0.0) for end_s, ttl_s in ends_s), default=math.inf
        )

    def why_waits(self, model: str) -> str:
        needed = megabytes(self._tenants[model].footprint.usual_bytes)
        leaving = self._names(Phase.LEAVING)
        holding = self._names(*HOLDING)
        what = (
            f"{leaving} is to make room"
            if leaving
            else f"held by {holding}"
            if holding
            else "the machine has less"
        )
        return f"waits for memory, about {needed}: {what}"

    # What follows.

    def _decide(self, now_s: float) -> None:
        kept_bytes = 0
        for tenant in self._waiting(now_s):
            needed_bytes = self._room.needed_bytes(tenant)
            error = self._refusal.of(tenant, now_s)
            if error is not None:
                self._leave_queue(tenant, Phase.OUT)
                self._effects.refuse(tenant.name, error)
                continue
            if self._room.fits(needed_bytes, kept_bytes):
                self._admit(tenant, needed_bytes)
                continue
            victims = None
            if now_s >= self._back_s:
                missing_bytes = needed_bytes + kept_bytes - self._room.free_bytes_then()
                victims = self._eviction.victims(tenant, missing_bytes, now_s)
            for victim in victims or ():
                victim.made_room_s = now_s
                self._evict(victim)
            if victims is not None or now_s - tenant.waits_since_s >= self._swap_wait_s:
                kept_bytes += needed_bytes

    def _waiting(self, now_s: float) -> list[Tenant]:
        """In the order in which they are served: who waited too long, then the most urgent, then who came first."""

        def place(tenant: Tenant) -> tuple[bool, int, float]:
            late = now_s - tenant.waits_since_s >= self._swap_wait_s
            return not late, 0 if late else self._effects.demand(tenant.name).urgency, tenant.waits_since_s

        return sorted((tenant for tenant in self if tenant.phase is Phase.WAITING), key=place)

    def _is_next(self, tenant: Tenant, now_s: float) -> bool:
        return self._waiting(now_s)[0] is tenant

    def _relieve(self, now_s: float) -> None:
        """They have grown beyond the budget: who is idle makes room, so that it is kept again."""
        if not self._ledger.has_budget or self._room.free_bytes_then() >= 0:
            return
        for victim in self._eviction.overgrown(-self._room.free_bytes_then(), now_s):
            victim.made_room_s = now_s
            self._evict(victim)

    def _admit(self, tenant: Tenant, needed_bytes: int) -> None:
        self._leave_queue(tenant, Phase.LOADING)
        tenant.resident_since_s = -math.inf
        self._ledger.open(tenant.name, needed_bytes)
        self._effects.read_ahead(tenant.name)
        self._effects.admit(tenant.name)

    def _leave_queue(self, tenant: Tenant, phase: Phase) -> None:
        tenant.phase, tenant.waits_since_s, tenant.blocked_since_s = phase, math.inf, None

    def _evict(self, tenant: Tenant) -> None:
        if tenant.phase is Phase.RESTARTING:
            # Nothing runs that it would have to wait for.
            self._ledger.close(tenant.name)
            tenant.phase = Phase.OUT
        else:
            tenant.phase = Phase.LEAVING
        self._effects.evict(tenant.name)

    def _idle_until_s(self, tenant: Tenant) -> float:
        ttl_s = tenant.terms.idle_ttl_s
        if ttl_s is None or tenant.terms.pinned or tenant.phase is not Phase.RESIDENT:
            return math.inf
        return tenant.used_s + ttl_s

    def _names(self, *phases: Phase) -> str:
        return ", ".join(f"`{tenant.name}`" for tenant in self if tenant.phase in phases)
