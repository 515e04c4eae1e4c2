"""Who makes room for whom. Pure."""

from collections.abc import Callable, Iterable, Iterator

from mlxsup.supervisor.residency.ledger import Ledger
from mlxsup.supervisor.residency.tenant import HOLDING, Demand, Phase, Tenant

# Whoever waited for a model is given something by it first.
_BEGINS_S = 1.0


class Eviction:
    """`tenants` are all that there are; `demand` says what one has to do."""

    def __init__(
        self,
        tenants: Iterable[Tenant],
        ledger: Ledger,
        demand: Callable[[str], Demand],
        *,
        residency_min_s: float,
        swap_wait_s: float,
    ) -> None:
        self._tenants = tenants
        self._ledger = ledger
        self._demand = demand
        self._residency_min_s = residency_min_s
        self._swap_wait_s = swap_wait_s

    def victims(self, tenant: Tenant, missing_bytes: int, now_s: float) -> list[Tenant] | None:
        """Who is to make room for `tenant`, so that so much more is free; None while that can't be had."""
        hold_s = self._residency_min_s if tenant.had_to_return else 0.0
        chosen: list[Tenant] = []
        for victim in (*self._idle(hold_s, now_s), *self._busy(tenant, now_s)):
            if missing_bytes <= 0:
                break
            chosen.append(victim)
            missing_bytes -= self._claimed(victim)
        if missing_bytes > 0:
            others = [other for other in self._tenants if other.phase in HOLDING and other not in chosen]
            # Alone on the machine it is tried with what there is.
            return None if others or self._ledger.has_budget else chosen
        for victim in tuple(chosen):
            if missing_bytes + self._claimed(victim) <= 0:
                chosen.remove(victim)
                missing_bytes += self._claimed(victim)
        return chosen

    def overgrown(self, excess_bytes: int, now_s: float) -> list[Tenant]:
        """Who goes when they hold so much more than they may, together; the last one may stay."""
        chosen: list[Tenant] = []
        staying = sum(other.phase in HOLDING for other in self._tenants)
        for victim in self._idle(0.0, now_s):
            if excess_bytes > 0 and staying > len(chosen) + 1:
                chosen.append(victim)
                excess_bytes -= self._claimed(victim)
        return chosen

    def _idle(self, hold_s: float, now_s: float) -> list[Tenant]:
        """Who was used longest ago comes first, and who was preloaded last."""
        idle = [
            other
            for other in self._movable(hold_s, now_s)
            if other.phase is Phase.RESIDENT and not self._demand(other.name).busy
        ]
        return sorted(idle, key=lambda other: (other.terms.preloaded, other.used_s))

    def _busy(self, tenant: Tenant, now_s: float) -> list[Tenant]:
        """The least urgent come first, and of those who is there for longest."""
        urgency = self._demand(tenant.name).urgency
        found = []
        for other in self._movable(self._residency_min_s, now_s):
            demand = self._demand(other.name)
            patience_s = 0.0 if urgency < demand.urgency else self._swap_wait_s
            busy = demand.busy or other.phase is Phase.RESTARTING
            if busy and not other.terms.preloaded and now_s - tenant.waits_since_s >= patience_s:
                found.append((-demand.urgency, other.resident_since_s, other))
        return [other for *_, other in sorted(found, key=lambda entry: entry[:2])]

    def _movable(self, hold_s: float, now_s: float) -> Iterator[Tenant]:
        for other in self._tenants:
            claim = self._ledger.get(other.name)
            # One of two workers of the same model is about to end anyway.
            loaded = (
                other.phase in (Phase.RESIDENT, Phase.RESTARTING) and claim is not None and claim.workers == 1
            )
            if loaded and not other.terms.pinned and now_s - other.resident_since_s >= max(hold_s, _BEGINS_S):
                yield other

    def _claimed(self, tenant: Tenant) -> int:
        return self._ledger.claimed_bytes([tenant.name])
