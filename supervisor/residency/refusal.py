"""Whose model can't have the memory that it needs, and what they are told. Pure."""

from collections.abc import Callable, Iterable

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.supervisor.residency.ledger import Ledger
from mlxsup.supervisor.residency.tenant import Demand, Phase, Tenant


class Refusal:
    """`tenants` are all that there are; `demand` says what one has to do."""

    def __init__(
        self,
        tenants: Iterable[Tenant],
        ledger: Ledger,
        demand: Callable[[str], Demand],
        *,
        blocked_s: float,
        swap_wait_s: float,
    ) -> None:
        self._tenants = tenants
        self._ledger = ledger
        self._demand = demand
        self._blocked_s = blocked_s
        self._swap_wait_s = swap_wait_s

    def of(self, tenant: Tenant, now_s: float) -> RpcError | None:
        """At once for one that is too large, and after a while for one that pinned or busy preloaded ones leave no room."""
        least_bytes = tenant.footprint.least_bytes
        if least_bytes > self._ledger.capacity_bytes:
            return _too_large(least_bytes, self._ledger)
        pinned = [other for other in self._tenants if other.terms.pinned and other.name in self._ledger]
        staying = [other for other in self._tenants if other.name in self._ledger and self._stays(other)]
        if pinned and self._attainable(pinned) < least_bytes:
            patience_s = self._blocked_s
        elif staying and self._attainable(staying) < least_bytes:
            patience_s = max(self._blocked_s, self._swap_wait_s)
        else:
            tenant.blocked_since_s = None
            return None
        if tenant.blocked_since_s is None:
            tenant.blocked_since_s = now_s
        if now_s - tenant.blocked_since_s < patience_s:
            return None
        return _no_room(least_bytes, self._attainable(staying), [other.name for other in staying])

    def _stays(self, other: Tenant) -> bool:
        if other.phase is Phase.LEAVING:
            return False
        return other.terms.pinned or (other.terms.preloaded and self._demand(other.name).busy)

    def _attainable(self, staying: list[Tenant]) -> int:
        """What could be free if all but those were put out."""
        names = {other.name for other in self._tenants} - {other.name for other in staying}
        return self._ledger.free_bytes() + self._ledger.claimed_bytes(names)


def _too_large(needed_bytes: int, ledger: Ledger) -> RpcError:
    bound = (
        "are the budget for models; raise `memory.budget_bytes`, or take"
        if ledger.has_budget
        else "is all that this machine can give; take"
    )
    return RpcError(
        ErrorKind.MODEL_LOAD_FAILED,
        f"the model needs about {megabytes(needed_bytes)} of memory, and {megabytes(ledger.capacity_bytes)} {bound} a "
        "smaller or more quantized model, or lower its `kv_bytes_max`",
        retriable=False,
    )


def _no_room(needed_bytes: int, attainable_bytes: int, staying: list[str]) -> RpcError:
    """`staying`: models that are not put out for it."""
    names = ", ".join(f"`{name}`" for name in staying)
    return RpcError(
        ErrorKind.MODEL_LOAD_FAILED,
        f"the model needs about {megabytes(needed_bytes)} of memory, and beside {names}, which stay loaded, at most "
        f"{megabytes(max(0, attainable_bytes))} could be free; unload one of them",
        retriable=True,
    )


def megabytes(count: int) -> str:
    return f"{count / 1e6:.0f} MB"
