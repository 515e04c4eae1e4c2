"""An engine that makes embeddings beside the text of another one.

Rule 1: texts that are more urgent than every sequence are read before any of them goes on; `reads_first` counts for those
that are one chunk together. Rule 2: as urgent, a chunk of texts comes after each step of the others, and is put aside when
they would pause for longer than is aimed at. Rule 3: less urgent, it has no longer than a step of theirs takes.
"""

import math
import time
from pathlib import Path
from typing import Protocol

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import FinishReason
from mlxsup.protocol.self_test import SelfTestResult
from mlxsup.protocol.worker_link import FRAME_BYTES_MAX, Embed, Generate, Load, Loaded, Tune
from mlxsup.worker.engine.codec import TextCodec
from mlxsup.worker.engine.embedding.embedder import Embedder, Job
from mlxsup.worker.engine.embedding.pooling import UnsupportedPoolingError, read_pooling
from mlxsup.worker.engine.embedding.trunk import Trunk
from mlxsup.worker.engine.embedding.values import NUMBER_BYTES_MAX
from mlxsup.worker.engine.interface import (
    Emission,
    Engine,
    IsWanted,
    Lease,
    Prepared,
    PreparedTexts,
    TestsItself,
)
from mlxsup.worker.engine.smoothing import smoothed
from mlxsup.worker.engine.stages import STAGE_S
from mlxsup.worker.engine.text import CHARS_PER_TOKEN_MAX

# What is around the numbers of an answer.
_FRAME_REST_BYTES = 64 * 1024


class Base(Engine, TestsItself, Protocol):
    """The other engine, and what texts become vectors by; without a trunk they do not."""

    @property
    def codec(self) -> TextCodec: ...

    @property
    def trunk(self) -> Trunk | None: ...


class EmbeddingEngine:
    """`embedder` None: there is none, for that `reason`."""

    def __init__(self, text: Base, embedder: Embedder | None, reason: str, order: Load) -> None:
        self._text = text
        self._embedder = embedder
        self._reason = reason
        self._chunk_tokens = self._chunk_tokens_usual = order.prefill_chunk_tokens
        self._target_s = order.prefill_target_s or math.inf
        self._lease: Lease | None = None
        self._jobs: dict[int, Job] = {}
        # Of requests that gave way: what has been made of them.
        self._kept: dict[int, Job] = {}
        # Of those that give text: their turns.
        self._turns: dict[int, int] = {}
        self._stepped = False
        self._spent_s = 0.0
        self._step_s = 0.0

    @classmethod
    def around(cls, text: Base, order: Load) -> "EmbeddingEngine":
        """With the trunk of its model, pooled as the folder says."""
        if text.trunk is None:
            return cls(text, None, "this model's hidden states can't be had", order)
        try:
            pooling = read_pooling(Path(order.model_path))
        except UnsupportedPoolingError as error:
            return cls(text, None, f"this model gives no embeddings here: {error}", order)
        return cls(text, Embedder(text.trunk, pooling), "", order)

    # Embeddings:

    def prepare_texts(self, request: Embed) -> PreparedTexts:
        """Tokenise, check each text against the context and all against what an answer may have. Raises RpcError."""
        if self._embedder is None:
            raise RpcError(ErrorKind.UNSUPPORTED, f"`embed`: {self._reason}")
        fitting = (FRAME_BYTES_MAX - _FRAME_REST_BYTES) // (self._embedder.dimensions * NUMBER_BYTES_MAX)
        if len(request.texts) > fitting:
            raise RpcError(
                ErrorKind.LIMIT_EXCEEDED,
                f"`$.input`: {len(request.texts)} embeddings of {self._embedder.dimensions} numbers are too many for one "
                f"answer; send at most {fitting} texts at once",
                path="$.input",
            )
        return PreparedTexts(
            [self._encode(text, request.path(place)) for place, text in enumerate(request.texts)], request
        )

    def _encode(self, text: str, path: str) -> list[int]:
        context = self.loaded.context_tokens
        if len(text) > context * CHARS_PER_TOKEN_MAX:
            raise _too_long(path, f"{len(text)} characters", context)
        tokens = self._text.codec.encode(text, special=True)
        if not tokens:
            raise RpcError(ErrorKind.INVALID_PARAMS, f"`{path}` has no tokens: send some text", path=path)
        if len(tokens) > context:
            raise _too_long(path, f"{len(tokens)} tokens", context)
        return tokens

    def submit_texts(self, id: int, prepared: PreparedTexts) -> None:
        assert self._embedder is not None
        order, texts = prepared.request, prepared.texts
        reads_first = order.reads_first and sum(map(len, texts)) <= self._chunk
        kept = self._kept.pop(id, None)
        vectors = {} if kept is None or kept.texts != texts else kept.vectors
        job = self._jobs[id] = Job(id, order, texts, reads_first, vectors)
        self._embedder.add(job)

    # As any engine:

    @property
    def loaded(self) -> Loaded:
        return self._text.loaded

    def prepare(self, request: Generate) -> Prepared:
        return self._text.prepare(request)

    def submit(self, id: int, prepared: Prepared) -> Emission | None:
        only = self._text.submit(id, prepared)
        if only is None:
            self._turns[id] = 2 * prepared.request.urgency + 1
        return only

    def cancel(self, id: int) -> Emission:
        if id in self._jobs:
            return self._take_out(self._jobs.pop(id))
        self._turns.pop(id)
        return self._text.cancel(id)

    def give_way(self, id: int) -> Emission:
        if id in self._jobs:
            self._kept[id] = self._jobs[id]
            return self._take_out(self._jobs.pop(id))
        self._turns.pop(id)
        return self._text.give_way(id)

    def _take_out(self, job: Job) -> Emission:
        assert self._embedder is not None
        self._embedder.remove(job)
        if self._lease is not None and not self._jobs and not self._text.prefill_tokens:
            self._lease.over()
        return Emission(job.id, "", [], FinishReason.CANCELLED)

    def forget(self, id: int) -> None:
        self._kept.pop(id, None)
        self._text.forget(id)

    def share(self, lease: Lease) -> None:
        self._lease = lease
        self._text.share(lease)

    def tune(self, order: Tune) -> None:
        if order.prefill_chunk_tokens is not None:
            self._chunk_tokens = order.prefill_chunk_tokens
        self._text.tune(order)

    def step_self_test(self, is_wanted: IsWanted) -> SelfTestResult | None:
        return self._text.step_self_test(is_wanted)

    def tokenize(self, text: str) -> list[int]:
        return self._text.tokenize(text)

    def detokenize(self, tokens: list[int]) -> str:
        return self._text.detokenize(tokens)

    def rest(self, is_wanted: IsWanted) -> None:
        self._text.rest(is_wanted)

    @property
    def prefill_tokens(self) -> int:
        embedder = self._next()
        if embedder is None or not self._is_allowed(embedder):
            return self._text.prefill_tokens
        return embedder.tokens(self._chunk)

    def step(self, is_wanted: IsWanted) -> list[Emission] | None:
        embedder = self._next()
        if embedder is None:
            return self._step_text(is_wanted)
        if not self._is_allowed(embedder):
            assert self._lease is not None
            self._lease.ask(embedder.tokens(self._chunk), (embedder.turn or 0) // 2)
            return self._step_text(is_wanted) if self._turns else []
        self._stepped = False
        until_s = time.monotonic() + self._pause_s(embedder)
        over = embedder.step(self._chunk, lambda: is_wanted() or time.monotonic() >= until_s)
        if over is None:
            return None
        if self._lease is not None:
            self._lease.over()
        return [_emission(self._jobs.pop(job.id)) for job in over]

    # How it is done.

    def _next(self) -> Embedder | None:
        """If it is its turn."""
        turn = None if self._embedder is None else self._embedder.turn
        if turn is None or (self._turns and not self._stepped and turn >= self._first_turn):
            return None
        return self._embedder

    @property
    def _first_turn(self) -> float:
        """Of those that give text."""
        return min(self._turns.values(), default=math.inf)

    @property
    def _target(self) -> float:
        return self._target_s * self._chunk_tokens / self._chunk_tokens_usual if self._turns else math.inf

    @property
    def _chunk(self) -> int:
        """In tokens."""
        assert self._embedder is not None
        return self._embedder.pace.tokens_in(self._target, self._chunk_tokens)

    def _pause_s(self, embedder: Embedder) -> float:
        """So long the others wait for a chunk of texts."""
        turn = embedder.turn or 0
        if turn < self._first_turn:
            return math.inf
        return self._target if turn == self._first_turn else max(self._step_s, STAGE_S)

    def _is_allowed(self, embedder: Embedder) -> bool:
        begun = embedder.has_begun_a_pass
        return begun or self._lease is None or self._lease.allows(embedder.tokens(self._chunk))

    def _step_text(self, is_wanted: IsWanted) -> list[Emission] | None:
        reads, began_s = self._text.prefill_tokens, time.monotonic()
        emissions = self._text.step(is_wanted)
        self._spent_s += time.monotonic() - began_s
        if emissions is None:
            return None
        if not reads:
            self._step_s = smoothed(self._step_s, self._spent_s)
        self._stepped, self._spent_s = True, 0.0
        for emission in emissions:
            if emission.finish is not None or emission.error is not None:
                self._turns.pop(emission.id)
        return emissions


def _emission(job: Job) -> Emission:
    if job.error is not None:
        return Emission(job.id, "", [], error=job.error)
    vectors = [job.vectors[place] for place in range(len(job.texts))]
    return Emission(job.id, "", [], FinishReason.STOP, embeddings=vectors)


def _too_long(path: str, what: str, context_tokens: int) -> RpcError:
    return RpcError(
        ErrorKind.LIMIT_EXCEEDED,
        f"`{path}` is too long: {what} do not fit into the model's context of {context_tokens} tokens, and nothing is "
        "truncated; send it in parts",
        path=path,
    )
