"""Who wants to ask the worker something that is no request, and waits while a request is to be computed alone. Pure."""

from collections.abc import Callable

from mlxsup.supervisor.scheduling.flights import Flights
from mlxsup.supervisor.scheduling.isolation import Isolation
from mlxsup.supervisor.scheduling.waiting_room import WaitingRoom

Tell = Callable[[], None]


class Askers:
    """`now_s` is a moment of the monotonic clock."""

    def __init__(self, isolation: Isolation, room: WaitingRoom, flights: Flights) -> None:
        self._isolation = isolation
        self._room = room
        self._flights = flights
        self._waiting: list[Tell] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def may_ask(self, now_s: float) -> bool:
        """Not while a request is computed alone, or is to be and is next."""
        if not self._isolation.concerns_somebody:
            return True
        return self._isolation.admits_questions(self._room.peek(now_s), list(self._flights))

    def wait(self, tell: Tell, now_s: float) -> None:
        """`tell` is called once, perhaps at once, unless it is given up before."""
        self._waiting.append(tell)
        self.look(now_s)

    def give_up(self, tell: Tell) -> None:
        if tell in self._waiting:
            self._waiting.remove(tell)

    def look(self, now_s: float) -> None:
        """Something has changed: tell all, if they may ask now."""
        if self._waiting and self.may_ask(now_s):
            told, self._waiting = self._waiting, []
            for tell in told:
                tell()
