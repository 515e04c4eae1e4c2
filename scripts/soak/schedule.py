"""Which worker is struck with what, and when: endless, and the same for the same seed. Pure.

Moments are shares of a span that the machine decides: of a load, of a prefill, of the time between two deaths. So the
same seed strikes at the same points of the same phases, as exactly as a real machine can be hit at all.
"""

import random
from collections.abc import Iterator, Sequence
from enum import StrEnum

import msgspec

from scripts.soak.causes import METAL_WORDS, NATURES, SIGNALLED, Cause


class Aim(StrEnum):
    """What is being done by the worker that an episode is about."""

    DECODE = "decode"
    PREFILL = "prefill"
    """Of a new request, while the others decode."""

    RESUMED = "resumed"
    """The prefill of all streams, which the next worker has just taken up."""

    LOADING = "loading"
    WARMING = "warming"
    DOUBLE = "double"
    """The next worker, as soon as there is one."""

    SPARE = "spare"
    """The idle spare; then, half of the time, the worker that serves, which has none now."""

    RECYCLED = "recycled"
    """A worker that serves, while its successor loads."""

    SUCCESSOR = "successor"
    """A successor, while it loads."""

    DRAINING = "draining"
    """A worker whose successor serves already."""


class Blow(msgspec.Struct, frozen=True, kw_only=True):
    """`moment` is a share of the phase that is aimed at. `metal` is the class of the words that a METAL has."""

    cause: Cause
    inside: bool
    moment: float
    metal: str

    @property
    def death_classes(self) -> frozenset[str]:
        """What the supervisor may call it: where it can't tell who sent a signal, it says which one it was."""
        own = NATURES[self.cause].death_class or self.metal
        from_outside = NATURES[self.cause].blames and not self.inside
        return frozenset({own, SIGNALLED} if from_outside else {own})


class Episode(msgspec.Struct, frozen=True, kw_only=True):
    """`patient`: it begins only when a spare worker is ready."""

    aim: Aim
    blows: tuple[Blow, ...]
    patient: bool


# Of a kind with several one is drawn each time. Decoding is what a worker does nearly always.
_KINDS = (
    (Aim.DECODE,),
    (Aim.DECODE,),
    (Aim.PREFILL,),
    (Aim.RESUMED,),
    (Aim.LOADING,),
    (Aim.WARMING,),
    (Aim.DOUBLE,),
    (Aim.SPARE,),
    (Aim.RECYCLED, Aim.SUCCESSOR, Aim.DRAINING),
)
_TWO_BLOWS = frozenset({Aim.RESUMED, Aim.LOADING, Aim.WARMING, Aim.DOUBLE})
_PATIENT_SHARE = 0.75


def episodes(seed: int, causes: Sequence[Cause]) -> Iterator[Episode]:
    """Every kind of moment comes before any comes again."""
    chance = random.Random(seed)
    while True:
        for kind in chance.sample(_KINDS, len(_KINDS)):
            yield _episode(chance, chance.choice(kind), causes)


def _episode(chance: random.Random, aim: Aim, causes: Sequence[Cause]) -> Episode:
    two = aim in _TWO_BLOWS or (aim is Aim.SPARE and chance.random() < 0.5)
    blows = [_blow(chance, causes) for _ in range(2 if two else 1)]
    if aim is Aim.SPARE and blows[0].cause in (Cause.STOP, Cause.METAL):
        # Nothing is asked of a spare, so it shows only when one is taken that it was stopped, or that its GPU is void.
        blows[0] = _killing(blows[0])
    if two and aim is not Aim.SPARE and all(NATURES[blow.cause].blames for blow in blows):
        # The second could hit a lone suspect of the first: that request would be quarantined, as it should be.
        which = chance.randrange(2)
        blows[which] = _killing(blows[which])
    return Episode(aim=aim, blows=tuple(blows), patient=chance.random() < _PATIENT_SHARE)


def _blow(chance: random.Random, causes: Sequence[Cause]) -> Blow:
    cause = chance.choice(causes)
    nature = NATURES[cause]
    inside, moment, metal = chance.random() < 0.5, chance.random(), chance.choice(list(METAL_WORDS))
    return Blow(
        cause=cause, inside=nature.inside and (inside or nature.signal is None), moment=moment, metal=metal
    )


def _killing(blow: Blow) -> Blow:
    return msgspec.structs.replace(blow, cause=Cause.KILL, inside=False)
