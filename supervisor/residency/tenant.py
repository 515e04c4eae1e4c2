"""One model as the keeper of the memory knows it. Pure."""

import math
from enum import StrEnum

import msgspec

from mlxsup.supervisor.residency.ledger import Footprint


class Phase(StrEnum):
    OUT = "out"
    WAITING = "waiting"
    """Somebody wants it, and it has no memory yet."""

    LOADING = "loading"
    RESIDENT = "resident"
    RESTARTING = "restarting"
    """Its worker died; what it held is kept for the next one."""

    LEAVING = "leaving"
    """It ends what runs, and starts nothing new."""


HOLDING = frozenset({Phase.LOADING, Phase.RESIDENT, Phase.RESTARTING})


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What the configuration says of a model. `idle_ttl_s` None: it may be idle for ever."""

    pinned: bool = False
    preloaded: bool = False
    idle_ttl_s: float | None = None
    kv_bytes_max: int = 0
    prefix_bytes_max: int = 0


class Demand(msgspec.Struct, frozen=True):
    """`urgency` is that of the most urgent work it has, running or waiting: 0 is the most urgent."""

    busy: bool
    urgency: int


class Tenant(msgspec.Struct, kw_only=True):
    """Moments are of the monotonic clock."""

    name: str
    terms: Terms
    footprint: Footprint
    phase: Phase = Phase.OUT
    waits_since_s: float = math.inf
    resident_since_s: float = -math.inf
    used_s: float = -math.inf
    made_room_s: float = -math.inf
    """When another one last got its memory."""

    had_to_return: bool = False
    """It was wanted again soon after it had made room."""

    blocked_since_s: float | None = None
    """Since when nothing that could be put out would be enough."""
