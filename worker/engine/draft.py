"""Guesses by a small model of the same vocabulary: speculative decoding (Leviathan et al. 2023, Chen et al. 2023).

Which tokens are guessed changes no text: each is told only once the model itself has chosen it.
"""

import time
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import KVCache, make_prompt_cache

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.worker.engine import loading
from mlxsup.worker.engine.codec import TextCodec
from mlxsup.worker.engine.interface import ReportLoad
from mlxsup.worker.engine.member import Caches
from mlxsup.worker.engine.smoothing import smoothed
from mlxsup.worker.engine.widths import TOKENS_MAX, Record

# Of a prompt that it has not read yet, so many tokens are read for each of the answer's.
_CATCH_UP_TOKENS = 128


class DraftModel:
    """One for all sequences; `token_s` is what one guess takes."""

    def __init__(self, model: nn.Module) -> None:
        caches = make_prompt_cache(model)
        if any(type(cache) is not KVCache for cache in caches):
            raise RpcError(
                ErrorKind.UNSUPPORTED,
                "the draft model can't be used: it keeps caches of which nothing can be taken back; name another as `draft`",
            )
        self.model = model
        self.token_s = 0.0

    def guesser(self) -> "Drafter":
        return Drafter(self)


class Drafter:
    """Of one sequence, whose tokens only ever become more."""

    def __init__(self, draft: DraftModel) -> None:
        self.record = Record()
        self._draft = draft
        self._caches: Caches = make_prompt_cache(draft.model)
        # What the caches hold, and how much of it is known to be right.
        self._read: list[int] = []
        self._sure = 0

    @property
    def token_s(self) -> float:
        return self._draft.token_s

    def may_follow(self, tokens: list[int]) -> int:
        """How many tokens it could guess; none as long as it has much to read, which it then does."""
        self._take_back(tokens)
        behind = len(tokens) - len(self._read)
        if behind > _CATCH_UP_TOKENS:
            self._feed(tokens[len(self._read) : len(self._read) + _CATCH_UP_TOKENS])
            return 0
        return TOKENS_MAX

    def guess(self, tokens: list[int], count: int) -> list[int]:
        self._take_back(tokens)
        logits = self._feed(tokens[len(self._read) :])
        began_s = time.monotonic()
        guessed: list[int] = []
        while True:
            guessed.append(_likeliest(logits))
            if len(guessed) == count:
                break
            logits = self._feed(guessed[-1:])
        if count > 1:
            self._draft.token_s = smoothed(self._draft.token_s, (time.monotonic() - began_s) / (count - 1))
        return guessed

    def _take_back(self, tokens: list[int]) -> None:
        """Guesses that were wrong, and at least the last token: what follows it is asked for."""
        same = min(self._sure, len(tokens) - 1)
        while same < min(len(self._read), len(tokens) - 1) and self._read[same] == tokens[same]:
            same += 1
        self._sure = same
        for cache in self._caches:
            cache.trim(len(self._read) - same)
        del self._read[same:]

    def _feed(self, tokens: list[int]) -> mx.array:
        logits: mx.array = self._draft.model(mx.array([tokens]), cache=self._caches)[0, -1]
        self._read += tokens
        mx.eval(logits)
        return logits


def load_draft(folder: Path, codec: TextCodec, float32: bool | None, report: ReportLoad) -> DraftModel:
    """Raises RpcError: MODEL_LOAD_FAILED where it can't be read or speaks in other tokens."""
    model, config = loading.load_weights(folder, float32, report)
    if not codec.has_vocabulary_of(loading.load_codec_tokenizer(folder, config)):
        raise RpcError(
            ErrorKind.MODEL_LOAD_FAILED,
            "the draft model has another vocabulary than the model: name one of the same family as `draft`",
        )
    return DraftModel(model)


def _likeliest(logits: mx.array) -> int:
    token = mx.argmax(logits).item()
    assert isinstance(token, int)
    return token
