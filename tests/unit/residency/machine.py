"""A machine for the keeper: models load, serve and drain in simulated time, and every rule is checked at each moment."""

import heapq
import itertools
import math
from collections import Counter, deque
from collections.abc import Callable
from functools import partial

import msgspec

from mlxsup.protocol.errors import RpcError
from mlxsup.supervisor.residency.keeper import Keeper
from mlxsup.supervisor.residency.ledger import Ledger
from mlxsup.supervisor.residency.tenant import Demand, Phase, Terms

BATCH_MAX = 4
BLOCKED_S = 10.0


class Model(msgspec.Struct, kw_only=True):
    """What it is, and how it stands. `held_bytes` is its worker's, `error` what it was refused with."""

    name: str
    size_bytes: int
    load_s: float
    urgency: int = 2
    asked: bool = False
    served: bool = False
    """Its worker can be given something."""
    leaves: bool = False
    held_bytes: int = 0
    grows_bytes: int = 0
    queue: deque[tuple[float, float]] = msgspec.field(default_factory=deque)
    """When each came, and how long it takes."""
    running: int = 0
    loads: int = 0
    waits_s: list[float] = msgspec.field(default_factory=list)
    """Of each request, from its arrival to its start."""
    turns_s: list[float] = msgspec.field(default_factory=list)
    """For how long it waited for its memory, each time."""
    asked_s: float = 0.0
    error: RpcError | None = None
    evicted_s: list[float] = msgspec.field(default_factory=list)


class Machine:
    """The effects of its `keeper`, and the time."""

    def __init__(
        self,
        budget_bytes: int,
        *,
        residency_min_s: float = 30.0,
        swap_wait_s: float = 120.0,
        set_aside_bytes: int = 0,
    ) -> None:
        self.now_s = 0.0
        self.budget_bytes = budget_bytes - set_aside_bytes
        self.residency_min_s = residency_min_s
        self.swap_wait_s = swap_wait_s
        self.models: dict[str, Model] = {}
        self.read_ahead_of: list[str] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        ledger = Ledger(
            budget_bytes=budget_bytes,
            set_aside_bytes=set_aside_bytes,
            headroom_bytes=0,
            total_bytes=0,
            available=lambda: 0,
        )
        self.keeper = Keeper(
            ledger, self, residency_min_s=residency_min_s, swap_wait_s=swap_wait_s, blocked_s=BLOCKED_S
        )

    def add(
        self, name: str, size_bytes: int, *, load_s: float = 3.0, urgency: int = 2, **terms: object
    ) -> Model:
        self.models[name] = model = Model(name=name, size_bytes=size_bytes, load_s=load_s, urgency=urgency)
        self.keeper.add(name, msgspec.convert(terms, Terms))
        return model

    # What the keeper does.

    def admit(self, name: str) -> None:
        model = self.models[name]
        assert not model.held_bytes
        model.turns_s.append(self.now_s - model.asked_s)
        self.at(self.now_s, lambda: self._load(model))

    def evict(self, name: str) -> None:
        model = self.models[name]
        assert not self.keeper.get(name).terms.pinned, "a pinned model is put out"
        assert self.busy_long_enough(model), "a busy model is put out without need"
        model.leaves = True
        model.evicted_s.append(self.now_s)
        self.at(self.now_s, lambda: self._end_drained(model))

    def refuse(self, name: str, error: RpcError) -> None:
        model = self.models[name]
        model.error = error
        model.asked = False
        model.queue.clear()

    def read_ahead(self, name: str) -> None:
        self.read_ahead_of.append(name)

    def demand(self, name: str) -> Demand:
        model = self.models[name]
        return Demand(busy=bool(model.running or model.queue), urgency=model.urgency)

    def busy_long_enough(self, model: Model) -> bool:
        if not (model.running or model.queue):
            return True
        long = self.now_s - self.keeper.get(model.name).resident_since_s >= self.residency_min_s
        waiting = [self.keeper.get(other.name) for other in self.models.values()]
        return long and any(
            tenant.phase is Phase.WAITING
            and (
                self.now_s - tenant.waits_since_s >= self.swap_wait_s
                or self.models[tenant.name].urgency < model.urgency
            )
            for tenant in waiting
        )

    # What happens to it.

    def at(self, at_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (at_s, next(self._numbers), act))

    def request(self, name: str, serve_s: float) -> None:
        model = self.models[name]
        model.queue.append((self.now_s, serve_s))
        self._want(model)
        self._fill(model)

    def run_until(self, end_s: float) -> None:
        while True:
            look_s = self.keeper.next_look_s(self.now_s)
            next_s = self._events[0][0] if self._events else math.inf
            if min(look_s, next_s) > end_s:
                break
            if next_s <= look_s:
                self.now_s, _, act = heapq.heappop(self._events)
                act()
            else:
                self.now_s = look_s
                self.keeper.on_tick(self.now_s)
            self.check()
        self.now_s = end_s

    def check(self) -> None:
        held = sum(model.held_bytes for model in self.models.values())
        grown = sum(model.grows_bytes for model in self.models.values())
        assert held - grown <= self.budget_bytes, f"{held} bytes of {self.budget_bytes}"

    def idle(self) -> bool:
        return not any(model.queue or model.running for model in self.models.values())

    @property
    def loads(self) -> Counter[str]:
        return Counter({model.name: model.loads for model in self.models.values()})

    def die(self, name: str, back_off_s: float) -> None:
        """Its worker does, in the middle of anything; what ran is lost, and for what waits there is another one."""
        model = self.models[name]
        if model.served:
            model.served, model.running, model.held_bytes = False, 0, 0
            if model.queue and not model.leaves:
                self.keeper.on_lost(name, self.now_s)
                if self.keeper.holds(name):
                    self.at(self.now_s + back_off_s, lambda: self._load(model))
                    return
            model.asked = False
            if not model.leaves:
                self.keeper.on_gone(name, self.now_s)
            else:
                self._gone(model)

    def grow(self, name: str, by_bytes: int) -> None:
        model = self.models[name]
        if model.served:
            model.grows_bytes += by_bytes
            model.held_bytes += by_bytes
            self.keeper.on_measured(name, [model.held_bytes], self.now_s)

    def _want(self, model: Model) -> None:
        if not model.asked:
            model.asked, model.asked_s = True, self.now_s
            self.keeper.on_wanted(model.name, model.size_bytes, self.now_s)

    def _load(self, model: Model) -> None:
        if not self.keeper.holds(model.name):
            # Put out before it began again.
            model.asked = model.leaves = False
            if model.queue:
                self._want(model)
            return
        self.keeper.on_workers(model.name, 1)
        model.loads += 1
        model.held_bytes, model.grows_bytes = model.size_bytes, 0
        self.at(self.now_s + model.load_s, lambda: self._ready(model))

    def _ready(self, model: Model) -> None:
        model.served = True
        self.keeper.on_ready(model.name, model.size_bytes, 0, self.now_s)
        self._fill(model)

    def _fill(self, model: Model) -> None:
        while model.served and not model.leaves and model.queue and model.running < BATCH_MAX:
            came_s, serve_s = model.queue.popleft()
            model.running += 1
            model.waits_s.append(self.now_s - came_s)
            self.keeper.on_used(model.name, self.now_s)
            self.at(self.now_s + serve_s, partial(self._served, model, model.loads))

    def _served(self, model: Model, number: int) -> None:
        if model.loads != number or not model.running:
            return
        model.running -= 1
        self._fill(model)
        self.keeper.on_used(model.name, self.now_s)
        self._end_drained(model)

    def _end_drained(self, model: Model) -> None:
        if model.leaves and model.served and not model.running:
            self._gone(model)

    def _gone(self, model: Model) -> None:
        model.leaves = model.served = model.asked = False
        model.held_bytes = model.grows_bytes = 0
        self.keeper.on_gone(model.name, self.now_s)
        if model.queue:
            self._want(model)
