"""A history by what it is about. Pure."""

from collections import defaultdict
from typing import TypeVar

from tests.simulation.history import (
    Answered,
    Asked,
    Delta,
    Died,
    Ended,
    Entry,
    History,
    Loading,
    Order,
    Phase,
    Spawned,
    Struck,
    Submitted,
)
from tests.simulation.schedule import Ask, Fault, Schedule

EntryT = TypeVar("EntryT", bound=Entry)
EPSILON_S = 1e-6


class Facts:
    """Lists are in order. Requests are known by their key to clients, and by their number inside."""

    def __init__(self, schedule: Schedule, history: History) -> None:
        self.schedule = schedule
        self.history = history
        self._by_type: dict[type[Entry], list[Entry]] = defaultdict(list)
        self.asked: dict[str, Asked] = {}
        self.answers: dict[str, list[Answered]] = defaultdict(list)
        self.deltas: dict[str, list[str]] = defaultdict(list)
        self.submitted: dict[str, Submitted] = {}
        self.accepted: dict[int, Submitted] = {}
        self.ended: dict[int, list[Ended]] = defaultdict(list)
        self.orders: dict[int, list[Order]] = defaultdict(list)
        self.struck: dict[int, list[Struck]] = defaultdict(list)
        self.died: dict[int, Died] = {}
        self.spawned: set[int] = set()
        # Workers that answer a load with nonsense.
        self.nonsense: set[int] = set()
        self.place: dict[int, int] = {}
        for place, entry in enumerate(history):
            self._by_type[type(entry)].append(entry)
            self.place[id(entry)] = place
            self._sort(entry)
        self.models_with_hangs = {
            loading.model
            for loading in self.all(Loading)
            if any(struck.fault is not Fault.DIE for struck in self.struck[loading.pid])
        }
        self.asks: dict[str, Ask] = {key: ask for key, ask in schedule.asks.items() if key in self.asked}
        self.questions = {key: call for key, call in schedule.questions.items() if key in self.asked}

    def _sort(self, entry: Entry) -> None:
        match entry:
            case Asked():
                self.asked[entry.key] = entry
            case Answered():
                self.answers[entry.key].append(entry)
            case Delta():
                self.deltas[entry.key].append(entry.text)
            case Submitted():
                self.submitted[entry.key] = entry
                if entry.refused is None:
                    self.accepted[entry.request] = entry
            case Ended():
                self.ended[entry.request].append(entry)
            case Order():
                self.orders[entry.request].append(entry)
            case Struck():
                self.struck[entry.pid].append(entry)
            case Died():
                self.died[entry.pid] = entry
            case Spawned():
                self.spawned.add(entry.pid)
                if entry.nonsense:
                    self.nonsense.add(entry.pid)

    def all(self, kind: type[EntryT]) -> list[EntryT]:
        return self._by_type[kind]  # type: ignore[return-value]

    def ask_of(self, request: int) -> Ask | None:
        """None for what the finale asks."""
        return self.asks.get(self.accepted[request].key)

    def before(self, entry: Entry, other: Entry) -> bool:
        return self.place[id(entry)] < self.place[id(other)]

    def phase_s(self, name: str) -> float | None:
        return next((phase.at_s for phase in self.all(Phase) if phase.name == name), None)
