"""What happened in a soak, as its clients saw it: requests, strikes, deaths, outages. Pure.

An outage is what a death of the worker that serves means for the streams: from the strike to the first text that a
stream which was in flight then gets from another worker. The supervisor's events and the streams come on one
connection, so what arrives after `ready` is the new worker's.
"""

import math
from enum import StrEnum
from typing import Any

import msgspec

from mlxsup.protocol.errors import RpcError
from mlxsup.protocol.generation import GenerationResult
from mlxsup.protocol.service import Event
from scripts.soak.orders import Order
from scripts.soak.schedule import Aim, Blow

# In this order; `backoff` is skipped where a successor is there already.
MARKS = ("death", "backoff", "spawning", "loading", "warming", "ready")


class Target(StrEnum):
    """Whom a strike hits, as far as clients are concerned."""

    SERVING = "serving"
    SPARE = "spare"
    OLD = "old"
    SUCCESSOR = "successor"


class Asked(msgspec.Struct):
    """A request. `got_text`: it has text of the worker that has it now. `faults` is what was wrong with its end."""

    model: str
    order: Order
    pieces: list[str] = []
    got_text: bool = False
    ended: bool = False
    error: str | None = None
    resumed: int = 0
    faults: list[str] = []


class Strike(msgspec.Struct, kw_only=True):
    """`computing` is what the streams saw their worker do. `death_s` is when its death was told, as all of `*_s` on the
    monotonic clock; `wall_s` is the time of day of the strike. `too_late`: it was ending by itself.
    """

    blow: Blow
    aim: Aim
    target: Target
    pid: int
    at_s: float
    wall_s: float
    computing: str
    spares: frozenset[int]
    in_flight: frozenset[int]
    death_s: float | None = None
    death_class: str | None = None
    phase: str | None = None
    too_late: bool = False


class Outage(msgspec.Struct):
    """`marks` are the moments of the states that came after the death. `pid` is the new worker's."""

    strike: Strike
    began_s: float
    marks: dict[str, float]
    pid: int | None = None
    first_text_s: float | None = None

    @property
    def seconds(self) -> float:
        return math.inf if self.first_text_s is None else self.first_text_s - self.strike.at_s

    @property
    def with_spare(self) -> bool:
        """The new worker was alive before the strike: it was a spare, whose imports were done."""
        return self.pid in self.strike.spares

    @property
    def by_successor(self) -> bool:
        """It loaded already when the old one died."""
        return self.strike.aim is Aim.RECYCLED

    def between(self, start: str, end: str) -> float | None:
        if start not in self.marks or end not in self.marks:
            return None
        return self.marks[end] - self.marks[start]


class History:
    """`model` is the one that is struck, any other one is to be left in peace."""

    def __init__(self, model: str) -> None:
        self._model = model
        self.asked: dict[int, Asked] = {}
        self.strikes: list[Strike] = []
        self.outages: list[Outage] = []
        self.cut_short = 0
        self.state = "stopped"
        self.stray_deaths: list[str] = []
        self._unsettled: set[int] = set()
        self._open: Outage | None = None
        self._last_in_flight: frozenset[int] = frozenset()

    # What the streams tell.

    def sent(self, model: str, order: Order) -> int:
        number = len(self.asked) + 1
        self.asked[number] = Asked(model, order)
        self._unsettled.add(number)
        return number

    def piece(self, number: int, text: str, now_s: float) -> None:
        asked = self.asked[number]
        asked.pieces.append(text)
        asked.got_text = True
        outage = self._open
        if outage is not None and number in outage.strike.in_flight and "ready" in outage.marks:
            outage.first_text_s = now_s
            self.outages.append(outage)
            self._open = None

    def answered(self, number: int, result: GenerationResult) -> None:
        asked = self.asked[number]
        asked.resumed = result.worker.resumed if result.worker is not None else 0
        asked.faults = _faults(asked, result)
        self._end(number)

    def refused(self, number: int, error: RpcError) -> None:
        self.asked[number].error = f"{error.kind.value}: {error.message}"
        self._end(number)

    def lost(self, number: int, why: str) -> None:
        """It ended without an answer."""
        self.asked[number].error = why
        self._end(number)

    def _end(self, number: int) -> None:
        asked = self.asked[number]
        asked.ended = True
        # The texts of thousands of requests are of no more use.
        asked.pieces = []
        self._unsettled.discard(number)

    # What the striker tells.

    def struck(
        self,
        blow: Blow,
        aim: Aim,
        target: Target,
        pid: int,
        *,
        spares: frozenset[int],
        now_s: float,
        wall_s: float,
    ) -> Strike:
        """To be called right before."""
        strike = Strike(
            blow=blow,
            aim=aim,
            target=target,
            pid=pid,
            at_s=now_s,
            wall_s=wall_s,
            computing=self.computing,
            spares=spares,
            in_flight=frozenset(self.in_flight()),
        )
        self.strikes.append(strike)
        return strike

    def serves(self, pid: int) -> None:
        """This process is the struck model's worker now."""
        newest = self._open or (self.outages[-1] if self.outages else None)
        if newest is not None and newest.pid is None and pid != newest.strike.pid:
            newest.pid = pid

    # What the supervisor tells.

    def event(self, event: Event, now_s: float) -> None:
        if event.topic == "death":
            self._death(event, now_s)
        elif event.topic == "worker" and event.model == self._model:
            self.state = event.what
            if self._open is not None and event.what in MARKS:
                self._open.marks.setdefault(event.what, now_s)
            if event.what == "ready":
                for number in self._unsettled:
                    self.asked[number].got_text &= self.asked[number].model != self._model

    def _death(self, event: Event, now_s: float) -> None:
        pid = event.detail.get("pid")
        strike = next((s for s in reversed(self.strikes) if s.pid == pid and s.death_s is None), None)
        if strike is None:
            self.stray_deaths.append(f"{event.model}: {event.what}, pid {pid}")
            return
        strike.death_s, strike.death_class, strike.phase = now_s, event.what, event.detail.get("phase")
        if strike.target in (Target.SERVING, Target.OLD):
            self._last_in_flight = strike.in_flight
            for number in strike.in_flight & self._unsettled:
                self.asked[number].got_text = False
        if strike.target == Target.SERVING and strike.in_flight:
            if self._open is not None:
                self.cut_short += 1
            began_s = strike.at_s if self._open is None else self._open.began_s
            self._open = Outage(strike, began_s, {"death": now_s})

    # What others ask.

    def in_flight(self) -> list[int]:
        """Requests to the struck model that are not answered yet."""
        return [number for number in self._unsettled if self.asked[number].model == self._model]

    @property
    def unsettled(self) -> int:
        return len(self._unsettled)

    @property
    def flows(self) -> bool:
        """The worker serves, and every stream that was in flight at the last death has text of another one, or its end.

        Whoever is still suspected of a death has no text yet.
        """
        if self.state != "ready" or not self._unsettled:
            return False
        waiting = self._last_in_flight & self._unsettled
        return all(self.asked[number].got_text for number in waiting) and self.computing == "decode"

    @property
    def computing(self) -> str:
        """As the streams see it: `prefill` while one of them has no text yet of the worker that has it."""
        running = [self.asked[number].got_text for number in self.in_flight()]
        if self.state != "ready":
            return self.state
        if not running:
            return "idle"
        return "decode" if all(running) else "prefill"


def _faults(asked: Asked, result: GenerationResult) -> list[str]:
    faults = []
    streamed = "".join(asked.pieces)
    for what, text in (("the stream", streamed), ("the answer", result.text)):
        if text != asked.order.text:
            faults.append(f"{what} differs from character {_first_difference(text, asked.order.text)} on")
    if result.usage.completion_tokens != asked.order.tokens:
        faults.append(f"{result.usage.completion_tokens} tokens instead of {asked.order.tokens}")
    return faults


def _first_difference(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((number for number, (a, b) in pairs if a != b), min(len(one), len(other)))


def describe(asked: Asked) -> dict[str, Any]:
    """Of a request that went wrong: enough to find it again."""
    return {"model": asked.model, "params": asked.order.params, "error": asked.error, "faults": asked.faults}
