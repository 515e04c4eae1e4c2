"""A history by what it is about. Pure."""

from collections import defaultdict
from collections.abc import Iterable
from typing import TypeVar

from tests.simulation.history import (
    Answered,
    Asked,
    Death,
    Delta,
    Died,
    Ended,
    Entry,
    GaveWay,
    Given,
    History,
    Loading,
    Order,
    Phase,
    Spawned,
    State,
    Struck,
    Submitted,
)
from tests.simulation.schedule import Ask, Fault, Schedule, Terminate

EntryT = TypeVar("EntryT", bound=Entry)
EPSILON_S = 1e-6


class Facts:
    """Lists are in order. Requests are known by their key to clients, and by their number inside.

    `nonsense` are workers that answer a load with that, `undead` those that SIGKILL does not end.
    """

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
        self.given: dict[int, list[Given]] = defaultdict(list)
        self.gave_way: dict[int, list[GaveWay]] = defaultdict(list)
        self.struck: dict[int, list[Struck]] = defaultdict(list)
        self.died: dict[int, Died] = {}
        self.place: dict[int, int] = {}
        for place, entry in enumerate(history):
            self._by_type[type(entry)].append(entry)
            self.place[id(entry)] = place
            self._sort(entry)
        spawned = self.all(Spawned)
        self.spawned = {entry.pid for entry in spawned}
        self.nonsense = {entry.pid for entry in spawned if entry.nonsense}
        self.undead = {entry.pid for entry in spawned if entry.outlives_sigkill}
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
            case Given():
                self.given[entry.request].append(entry)
            case GaveWay():
                self.gave_way[entry.request].append(entry)
            case Order():
                self.orders[entry.request].append(entry)
            case Struck():
                self.struck[entry.pid].append(entry)
            case Died():
                self.died[entry.pid] = entry

    def last_forgiven(self, entry: Death | State) -> Entry | None:
        """The last moment before `entry` in which a load by hand may have forgiven its model."""
        last: Entry | None = None
        for asked in self.all(Asked):
            if asked.method != "model/load" or not self.before(asked, entry):
                continue
            # Some time between the two, and for the finale's loads any model.
            question = self.questions.get(asked.key)
            if question is None or question.params["model"] == entry.model:
                answered = [answer for answer in self.answers[asked.key] if self.before(answer, entry)]
                last = answered[0] if answered else entry
        return last

    @property
    def is_hurried(self) -> bool:
        """Whether the supervisor is told to end more than once, which ends its patience."""
        told = [asked for asked in self.asked.values() if asked.method == "server/shutdown"]
        signals = [timed for timed in self.schedule.acts if isinstance(timed.act, Terminate)]
        return self.schedule.hurry_after_s is not None or len(told) + len(signals) > 1

    def all(self, kind: type[EntryT]) -> list[EntryT]:
        return self._by_type[kind]  # type: ignore[return-value]

    def ask_of(self, request: int) -> Ask | None:
        """None for what the finale asks."""
        return self.asks.get(self.accepted[request].key)

    def before(self, entry: Entry, other: Entry) -> bool:
        return self.place[id(entry)] < self.place[id(other)]

    def between(self, first: Entry, entries: Iterable[Entry], last: Entry) -> bool:
        """Whether one of `entries` came after `first` and before `last`."""
        return any(self.before(first, entry) and self.before(entry, last) for entry in entries)

    def phase_s(self, name: str) -> float | None:
        return next((phase.at_s for phase in self.all(Phase) if phase.name == name), None)
