"""How much memory a model needs, and whether that is free, now or once those are gone that leave. Pure."""

from collections.abc import Collection

from mlxsup.supervisor.residency.ledger import Ledger
from mlxsup.supervisor.residency.tenant import Phase, Tenant


class Room:
    """`tenants` are all that there are."""

    def __init__(self, tenants: Collection[Tenant], ledger: Ledger) -> None:
        self._tenants = tenants
        self._ledger = ledger

    def needed_bytes(self, tenant: Tenant) -> int:
        """As much as earlier workers of it needed, but no more than it could ever get."""
        pinned = [other.name for other in self._tenants if other.terms.pinned and other is not tenant]
        attainable = self._ledger.capacity_bytes - self._ledger.claimed_bytes(pinned)
        return max(tenant.footprint.least_bytes, min(tenant.footprint.usual_bytes, attainable))

    def fits(self, needed_bytes: int, kept_bytes: int) -> bool:
        """Whether so much is free beside what is kept for those that come before."""
        if not len(self._ledger):
            return not kept_bytes
        return (
            needed_bytes <= self._ledger.free_bytes() and needed_bytes + kept_bytes <= self.free_bytes_then()
        )

    def free_bytes_then(self) -> int:
        """Once those have gone that are to make room."""
        leaving = {tenant.name for tenant in self._tenants if tenant.phase is Phase.LEAVING}
        return self._ledger.free_bytes() + self._ledger.claimed_bytes(leaving)

    def measure(self, tenant: Tenant) -> None:
        """Keep as much for it as it needs by what is known now."""
        claim = self._ledger.get(tenant.name)
        if claim is not None:
            claim.needed_bytes = self.needed_bytes(tenant)
