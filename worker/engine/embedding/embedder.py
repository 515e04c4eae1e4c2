"""Whose texts are read next, and what has been made of them.

Rule 1: the most urgent requests first, and of those in turn one after the other. Rule 2: with a request's longest text so many
others are read as are hardly shorter and have room in a chunk, of its own first, then of those that are as urgent.
"""

from collections.abc import Iterable

import msgspec
import numpy as np

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.worker_link import Embed
from mlxsup.worker.engine.embedding.pooling import Pooling
from mlxsup.worker.engine.embedding.reading import Reading
from mlxsup.worker.engine.embedding.trunk import Trunk
from mlxsup.worker.engine.embedding.values import as_json, normalized
from mlxsup.worker.engine.interface import IsWanted
from mlxsup.worker.engine.pace import Pace

# As many rows are computed hardly slower than fewer, and no more.
_TEXTS_MAX = 64


class Job(msgspec.Struct, eq=False):
    """The texts of one request in tokens; `vectors` are those that are made, by their places."""

    id: int
    order: Embed
    texts: list[list[int]]
    reads_first: bool
    vectors: dict[int, bytes] = msgspec.field(default_factory=dict)
    error: RpcError | None = None

    @property
    def turn(self) -> int:
        """As that of a member of the batch."""
        return 2 * self.order.urgency + (not self.reads_first)

    @property
    def is_over(self) -> bool:
        return self.error is not None or len(self.vectors) == len(self.texts)

    def missing(self) -> list[int]:
        """Places, that of the longest text first."""
        places = [place for place in range(len(self.texts)) if place not in self.vectors]
        return sorted(places, key=lambda place: -len(self.texts[place]))


class Embedder:
    def __init__(self, trunk: Trunk, pooling: Pooling) -> None:
        self.dimensions = trunk.dimensions
        self.pace = Pace()
        self._trunk = trunk
        self._pooling = pooling
        self._jobs: list[Job] = []
        # What is being read, and which text of whom each row is.
        self._reading: Reading | None = None
        self._rows: list[tuple[Job, int]] = []

    def add(self, job: Job) -> None:
        self._jobs.append(job)
        self._jobs.sort(key=lambda each: each.turn)

    def remove(self, job: Job) -> None:
        """What is read of others meanwhile goes on."""
        self._jobs.remove(job)
        if not any(reader in self._jobs for reader, _ in self._rows):
            self._reading, self._rows = None, []

    @property
    def turn(self) -> int | None:
        """Of what is read next, None: nothing is."""
        return self._jobs[0].turn if self._jobs else None

    @property
    def has_begun_a_pass(self) -> bool:
        return self._reading is not None and self._reading.is_put_aside

    def tokens(self, chunk_tokens: int) -> int:
        """Of what is read next."""
        if self._reading is not None:
            return self._reading.tokens(chunk_tokens)
        rows = self._choose(chunk_tokens)
        return min(chunk_tokens, sum(len(job.texts[place]) for job, place in rows))

    def step(self, chunk_tokens: int, is_wanted: IsWanted) -> list[Job] | None:
        """Those whose last text has been read now; None when it is put aside before its end."""
        if self._reading is None:
            self._rows = self._choose(chunk_tokens)
            texts = [job.texts[place] for job, place in self._rows]
            self._reading = Reading(self._trunk, self._pooling, texts, self.pace)
        if not self._reading.step(chunk_tokens, is_wanted):
            return None
        if not self._reading.is_over:
            return []
        for (job, place), vector in zip(self._rows, self._reading.vectors(), strict=True):
            _take(job, place, vector)
        first = self._rows[0][0]
        self._reading, self._rows = None, []
        over = [job for job in self._jobs if job.is_over]
        self._jobs = [job for job in self._jobs if not job.is_over]
        if first in self._jobs:
            # It is the others' turn.
            self.remove(first)
            self.add(first)
        return over

    def _choose(self, chunk_tokens: int) -> list[tuple[Job, int]]:
        """The first is the longest."""
        first = self._jobs[0]
        others = [job for job in self._jobs[1:] if job.turn == first.turn]
        (longest, *rest) = first.missing()
        length = len(first.texts[longest])
        candidates = [(first, place) for place in rest] + _fitting(others, length)
        room = min(_TEXTS_MAX, max(1, chunk_tokens // length))
        return [(first, longest), *candidates[: room - 1]]


def _fitting(jobs: Iterable[Job], length: int) -> list[tuple[Job, int]]:
    found = [(job, place) for job in jobs for place in job.missing() if len(job.texts[place]) <= length]
    return sorted(found, key=lambda row: -len(row[0].texts[row[1]]))


def _take(job: Job, place: int, vector: np.ndarray) -> None:
    if np.isfinite(vector).all():
        job.vectors[place] = as_json(normalized(vector) if job.order.normalize else vector)
    else:
        path = job.order.path(place)
        job.error = RpcError(
            ErrorKind.INTERNAL, f"the model's hidden states for `{path}` are no numbers", path=path
        )
