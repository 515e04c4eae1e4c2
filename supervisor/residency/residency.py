"""The models' memory as tasks see it: each has a reservation, and one task looks after all of them."""

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

import msgspec
import trio

from mlxsup.config.schema import Memory
from mlxsup.config.schema import Model as ModelConfig
from mlxsup.protocol.errors import RpcError
from mlxsup.supervisor.residency.keeper import Keeper
from mlxsup.supervisor.residency.ledger import Ledger
from mlxsup.supervisor.residency.read_ahead import read_ahead
from mlxsup.supervisor.residency.tenant import Demand, Phase, Terms

_log = logging.getLogger(__name__)

# A worker's interpreter with its libraries: 185 MB were measured beside the weights.
PROCESS_BYTES = 200_000_000
_LOOK_S = 0.5
# Where nothing is configured: of what all models may take, and of what nobody has a claim to.
_PREFIX_SHARE = 16
_PREFIX_FREE_SHARE = 4


class Weights(msgspec.Struct, frozen=True):
    """`bytes` is what they take in memory; they are read from `files`."""

    bytes: int
    files: tuple[Path, ...] = ()


Weigh = Callable[[], Awaitable[Weights | None]]


class Occupant(Protocol):
    """Whose worker it is that has the memory. None of this waits."""

    def demand(self) -> Demand:
        """What it has to do, running and waiting."""
        ...

    def make_room(self) -> None:
        """End what runs, start nothing new, and let the worker go; what waits may wait for its turn."""
        ...


class Residency:
    """Of all models on this machine. `available` is the memory that it has left, in bytes."""

    def __init__(
        self,
        memory: Memory,
        *,
        headroom_bytes: int,
        blocked_s: float,
        spares: int,
        total_bytes: int,
        available: Callable[[], int],
    ) -> None:
        """`spares` workers may be kept without a model; `blocked_s` as the keeper's."""
        self._read_ahead = memory.read_ahead
        self._available = available
        self._headroom_bytes = headroom_bytes
        self.ledger = Ledger(
            budget_bytes=memory.budget_bytes,
            set_aside_bytes=spares * PROCESS_BYTES,
            headroom_bytes=headroom_bytes,
            total_bytes=total_bytes,
            available=available,
        )
        self.keeper = Keeper(
            self.ledger,
            self,
            residency_min_s=memory.residency_min_s,
            swap_wait_s=memory.swap_wait_s,
            blocked_s=blocked_s,
        )
        self._reservations: dict[str, Reservation] = {}
        self._to_read: list[Reservation] = []
        self._poked = trio.Event()

    def reserve(self, model: str, config: ModelConfig, weigh: Weigh) -> "Reservation":
        """The model's one reservation, without any memory yet."""
        terms = Terms(
            pinned=config.pin,
            preloaded=config.preload,
            idle_ttl_s=config.idle_ttl_s,
            kv_bytes_max=config.kv_bytes_max or 0,
            prefix_bytes_max=config.prefix_bytes_max or 0,
        )
        self.keeper.add(model, terms)
        self._reservations[model] = reservation = Reservation(model, self, terms, config, weigh)
        return reservation

    async def run(self) -> None:
        """Do what is due: swaps, what was idle for too long, reading ahead; until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                self._poked = trio.Event()
                for reservation in self._to_read:
                    nursery.start_soon(self._read, reservation)
                self._to_read = []
                with trio.move_on_at(self.keeper.next_look_s(trio.current_time())):
                    await self._poked.wait()
                self.keeper.on_tick(trio.current_time())

    def prefix_bytes_max(self, model: str) -> int:
        """What a worker of it that begins now may keep of what requests have begun with."""
        return self._reservations[model].prefix_bytes_max

    def look_again(self) -> None:
        """Something may be due earlier than it was."""
        self._poked.set()

    # What the keeper does.

    def admit(self, model: str) -> None:
        self._reservations[model].settle(None)

    def evict(self, model: str) -> None:
        _log.info("%s makes room", model)
        self._reservations[model].vacate()

    def refuse(self, model: str, error: RpcError) -> None:
        self._reservations[model].settle(error)

    def read_ahead(self, model: str) -> None:
        reservation = self._reservations[model]
        if self._read_ahead and reservation.files and not reservation.reads_ahead:
            reservation.reads_ahead = True
            self._to_read.append(reservation)
            self.look_again()

    def demand(self, model: str) -> Demand:
        return self._reservations[model].demand()

    async def _read(self, reservation: "Reservation") -> None:
        # What the cache takes is no more than what nobody uses.
        bytes_max = max(0, self._available() - self._headroom_bytes)
        files = reservation.files
        asked = await trio.to_thread.run_sync(read_ahead, files, bytes_max, abandon_on_cancel=True)
        _log.debug("%s: %d MB are read ahead", reservation.model, asked // 10**6)


class Reservation:
    """Of one model. Its succession tells it what happens, and asks it before a worker begins."""

    def __init__(
        self, model: str, residency: Residency, terms: Terms, config: ModelConfig, weigh: Weigh
    ) -> None:
        self.model = model
        self.files: tuple[Path, ...] = ()
        self.reads_ahead = False
        self._residency = residency
        self._keeper = residency.keeper
        self._terms = terms
        self._config = config
        self._weigh = weigh
        self._occupant: Occupant | None = None
        self._settled = trio.Event()
        self._error: RpcError | None = None

    def occupy(self, occupant: Occupant) -> None:
        self._occupant = occupant

    def demand(self) -> Demand:
        assert self._occupant is not None
        return self._occupant.demand()

    # What is to be seen.

    @property
    def bytes(self) -> int:
        """What is kept for its workers."""
        claim = self._residency.ledger.get(self.model)
        return 0 if claim is None else claim.bytes

    @property
    def phase(self) -> Phase:
        return self._keeper.get(self.model).phase

    # For the residency:

    def settle(self, error: RpcError | None) -> None:
        self._error = error
        self._settled.set()

    def vacate(self) -> None:
        assert self._occupant is not None
        self._occupant.make_room()

    # For the succession:

    async def wait(self, is_asked_for: Callable[[], bool], tell: Callable[[str], None]) -> RpcError | None:
        """Until a worker may be begun, or nobody asks any more; with the reason if there can't be one.

        `tell` is called with why it takes long.
        """
        if self._keeper.holds(self.model):
            return None
        weights = await self._weigh()
        while self._keeper.get(self.model).phase is Phase.LEAVING:
            # A worker that was replaced drains.
            if not is_asked_for():
                return None
            await trio.sleep(_LOOK_S)
        self.files, self.reads_ahead = ((), False) if weights is None else (weights.files, False)
        self._settled, self._error = trio.Event(), None
        estimate_bytes = PROCESS_BYTES + (0 if weights is None else weights.bytes)
        try:
            self._keeper.on_wanted(self.model, estimate_bytes, trio.current_time())
            self._residency.look_again()
            while not self._settled.is_set() and is_asked_for():
                tell(self._keeper.why_waits(self.model))
                with trio.move_on_after(_LOOK_S):
                    await self._settled.wait()
        finally:
            self._keeper.on_unwanted(self.model, trio.current_time())
        return self._error

    @property
    def is_held(self) -> bool:
        """Whether a worker may be begun."""
        return self._keeper.holds(self.model)

    def hurry(self) -> None:
        """Somebody asks for the model by hand."""
        self._keeper.on_hurry(self.model, trio.current_time())

    def pin(self, *, pinned: bool) -> None:
        self._terms = msgspec.structs.replace(self._terms, pinned=pinned)
        self._keeper.on_terms(self.model, self._terms, trio.current_time())
        self._residency.look_again()

    def may_double(self) -> bool:
        """Whether a second worker may be begun beside the one that serves."""
        return self._keeper.may_double(self.model)

    def has_workers(self, count: int) -> None:
        self._keeper.on_workers(self.model, count)

    def ready(self, resident_bytes: int, kv_bytes_per_token: int, context_tokens: int) -> None:
        """A worker has been loaded, and holds so much."""
        kv_bytes_max = self._config.kv_bytes_max or 0
        if kv_bytes_per_token:
            full = self._config.batch_sequences_max * context_tokens * kv_bytes_per_token
            kv_bytes_max = min(kv_bytes_max, full)
        self._keeper.on_ready(self.model, resident_bytes, kv_bytes_max, trio.current_time())
        self._residency.look_again()

    def kv_bytes_max(self, resident_bytes: int) -> int:
        """What its KV caches may hold: as configured, or else what nobody else has a claim to."""
        if self._config.kv_bytes_max is not None:
            return self._config.kv_bytes_max
        return max(0, self._residency.ledger.free_bytes() + self.bytes - resident_bytes)

    @property
    def prefix_bytes_max(self) -> int:
        """What may be kept of what requests have begun with: as configured, or else a share of what there is."""
        if self._config.prefix_bytes_max is not None:
            return self._config.prefix_bytes_max
        ledger = self._residency.ledger
        free_bytes = max(0, ledger.free_bytes())
        return min(ledger.capacity_bytes // _PREFIX_SHARE, free_bytes // _PREFIX_FREE_SHARE)

    def measured(self, resident_bytes: list[int]) -> None:
        """What each of its workers holds."""
        self._keeper.on_measured(self.model, resident_bytes, trio.current_time())

    def used(self) -> None:
        """Something was begun, or has ended."""
        self._keeper.on_used(self.model, trio.current_time())

    def lost(self) -> None:
        """The last worker is gone, and another one is to come."""
        self._keeper.on_lost(self.model, trio.current_time())
        self._residency.look_again()

    def release(self) -> None:
        """The last worker is gone, and none is to come."""
        self._keeper.on_gone(self.model, trio.current_time())
        self._residency.look_again()
