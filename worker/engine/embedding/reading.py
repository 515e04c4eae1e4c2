"""Texts that are read together, from their beginnings to their ends, a chunk of each at a time."""

import time

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlxsup.worker.engine.embedding.pooling import Pooling, weights
from mlxsup.worker.engine.embedding.trunk import Trunk
from mlxsup.worker.engine.interface import IsWanted
from mlxsup.worker.engine.pace import Pace
from mlxsup.worker.engine.stages import Stages, cache_arrays, cache_marks


class Reading:
    """The shorter ones are padded on the right, where nothing looks."""

    def __init__(self, trunk: Trunk, pooling: Pooling, texts: list[list[int]], pace: Pace) -> None:
        self._trunk = trunk
        self._pooling = pooling
        self._texts = texts
        self._pace = pace
        self._lengths = [len(text) for text in texts]
        self._caches = trunk.caches()
        self._vectors = mx.zeros((len(texts), trunk.dimensions), dtype=mx.float32)
        # Columns that are read, and of the chunk that is being computed; what was spent on that.
        self._read = 0
        self._chunk = 0
        self._chunk_tokens = 0
        self._stages = Stages()
        self._spent_s = 0.0

    @property
    def is_put_aside(self) -> bool:
        return self._chunk > 0

    @property
    def is_over(self) -> bool:
        return self._read == max(self._lengths)

    def tokens(self, chunk_tokens: int) -> int:
        """Of the chunk that is next."""
        return (self._chunk or self._next_chunk(chunk_tokens)) * len(self._texts)

    def step(self, chunk_tokens: int, is_wanted: IsWanted) -> bool:
        """Read a chunk, or what is left of the last one; False when it is put aside before its end."""
        began_s = time.monotonic()
        if not self._chunk:
            self._build(chunk_tokens)
        over = self._stages.run(is_wanted)
        if over:
            self._read += self._chunk
            mx.eval(self._vectors, [] if self.is_over else cache_arrays(self._caches))
            mx.clear_cache()
            self._spent_s += time.monotonic() - began_s
            self._pace.learn(self._chunk * len(self._texts), self._spent_s, self._chunk_tokens)
            self._chunk, self._spent_s = 0, 0.0
        else:
            self._spent_s += time.monotonic() - began_s
        return over

    def vectors(self) -> npt.NDArray[np.float32]:
        """Of shape [texts, dimensions], once it is over."""
        return np.array(self._vectors)

    def _next_chunk(self, chunk_tokens: int) -> int:
        left = max(self._lengths) - self._read
        return left if self._trunk.reads_whole else min(max(1, chunk_tokens // len(self._texts)), left)

    def _build(self, chunk_tokens: int) -> None:
        self._chunk_tokens = chunk_tokens
        self._chunk = self._next_chunk(chunk_tokens)
        begin, end = self._read, self._read + self._chunk
        pad = [self._trunk.pad_token]
        rows = [text[begin:end] + pad * (self._chunk - len(text[begin:end])) for text in self._texts]
        hidden = self._trunk(mx.array(rows), self._caches, self._lengths).astype(mx.float32)
        counts = mx.array(weights(self._pooling, self._lengths, begin, end))[:, :, None]
        # Behind the end there may be anything, also what is no number.
        self._vectors = self._vectors + mx.where(counts > 0, hidden * counts, 0.0).sum(axis=1)
        pass_s = self._pace.seconds_per_token * self._chunk * len(rows)
        self._stages = Stages(cache_marks(self._caches, pass_s))
