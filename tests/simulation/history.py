"""What happened in a schedule, in order, as the checks and a reader need it. Pure."""

from typing import Any

import msgspec

from tests.simulation.schedule import Cause, Fault


class Entry(msgspec.Struct, kw_only=True, repr_omit_defaults=True):
    at_s: float

    @property
    def trigger(self) -> str | None:
        """What a `Reaction` waits for."""
        return None


class Asked(Entry, tag="asked"):
    """A client has sent a request."""

    client: int
    key: str
    method: str


class Cancelled(Entry, tag="cancelled"):
    """A client has asked for the end of one of its requests."""

    client: int
    key: str

    @property
    def trigger(self) -> str:
        return "cancel"


class Delta(Entry, tag="delta"):
    """A client has got text."""

    key: str
    text: str

    @property
    def trigger(self) -> str:
        return "delta"


class Answered(Entry, tag="answered"):
    """A client has got the one answer to its request. `kind` is an error's, None for a result."""

    key: str
    kind: str | None
    message: str | None
    data: dict[str, Any]
    result: dict[str, Any]

    @property
    def trigger(self) -> str:
        return "answered"


class Stray(Entry, tag="stray"):
    """A client has got what belongs to none of its requests that wait for an answer."""

    client: int
    what: str


class Closed(Entry, tag="closed"):
    """A connection has ended. `by`: `client`, `server`, or `input` for a client that asks for nothing more."""

    client: int
    by: str


class Submitted(Entry, tag="submitted"):
    """A model was asked to take a request. `refused` is the kind of the error, None when it was accepted."""

    key: str
    request: int
    model: str
    queued_before: int
    refused: str | None

    @property
    def trigger(self) -> str | None:
        return "accepted" if self.refused is None else None


class Ended(Entry, tag="ended"):
    """An accepted request has ended, as it is counted."""

    request: int
    outcome: str


class GaveWay(Entry, tag="gave_way"):
    """A request was taken back from its worker, since another one is to be computed alone."""

    request: int


class State(Entry, tag="state"):
    """What the supervisor says of a model."""

    model: str
    state: str
    generation: int

    @property
    def trigger(self) -> str:
        return f"{self.model} {self.state}"


class Death(Entry, tag="death"):
    """What the supervisor made of a worker's death; requests by number."""

    model: str
    pid: int
    name: str
    weight: int
    blames: bool
    resumes_max: int | None
    wait_s: float | None
    questions: int
    """So many it had beside those."""
    resumed: list[int]
    failed: list[int]
    quarantined: list[int]
    times_resumed: dict[int, int]
    """Of each of those, before this death."""
    fruitless: dict[int, int]
    """Of each of those: in how many workers in a row it has gained nothing, up to this one."""

    @property
    def trigger(self) -> str:
        return "death"

    @property
    def lost(self) -> list[int]:
        return [*self.resumed, *self.failed, *self.quarantined]


class Spawned(Entry, tag="spawned"):
    pid: int
    nonsense: bool
    """It will answer its load order with nonsense."""
    outlives_sigkill: bool

    @property
    def trigger(self) -> str:
        return "spawned"


class Loading(Entry, tag="loading"):
    """A worker was told to load a model."""

    pid: int
    model: str


class Given(Entry, tag="given"):
    """The supervisor has sent a request to a worker, which may die before it reads it."""

    pid: int
    request: int


class Order(Entry, tag="order"):
    """A worker was given a request. `same` tells orders for the same text; `delivered` are tokens and characters."""

    pid: int
    request: int
    prompt: str
    same: int
    delivered: list[int]
    delivered_chars: int
    batch: int
    """How many it computes now, with this one."""

    @property
    def trigger(self) -> str:
        return "order"


class Told(Entry, tag="told"):
    """A worker was told to end, and its input was closed."""

    pid: int


class Signalled(Entry, tag="signalled"):
    pid: int
    name: str


class Struck(Entry, tag="struck"):
    """Something has befallen a worker. `request` is the poison, if it was one; `cause` only matters where it dies."""

    pid: int
    fault: Fault
    cause: Cause
    request: int | None = None


class Died(Entry, tag="died"):
    pid: int
    returncode: int


class Phase(Entry, tag="phase"):
    """Of the schedule itself: `calm`, `settled`, `shutdown`, `closed`, `over`."""

    name: str
    drain_s: float = 0.0


class Found(Entry, tag="found"):
    """What the audit saw that should not be."""

    what: str


class Logged(Entry, tag="logged"):
    level: str
    text: str


History = list[Entry]


def describe(entry: Entry) -> str:
    fields = [
        f"{name}={value!r}"
        for name in entry.__struct_fields__
        if name != "at_s" and (value := getattr(entry, name)) not in (None, {}, [])
    ]
    return f"{entry.at_s:10.3f}  {type(entry).__name__.lower():<9} {' '.join(fields)}"
