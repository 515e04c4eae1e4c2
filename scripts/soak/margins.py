"""Finds texts that rounding decides, in a worker of its own.

The same logits, computed in other company or after a replay, differ in their last bits. Where two tokens are as near
to each other as that, either is right, and a comparison byte for byte says nothing. So each token is drawn again, from
log probabilities with noise that is some five times as large: a text of which all stay the same is one to compare with.
"""

from pathlib import Path

import mlx.core as mx

from mlxsup.protocol.worker_link import Sampling
from mlxsup.worker.engine import text
from mlxsup.worker.engine.sampling import Sampler

# On MLX's CPU backend, for a model of 30 layers, company changes them by less than 0.0001.
_NOISE = 3e-4
# Each of them misses half of those that are as near as can be.
_TRIES = 6


def watch_margins(found: Path) -> None:
    """From now on the seeds of requests with such a text are appended to `found`, a line each."""
    make_plain = text.make_sampler  # type: ignore[attr-defined]

    def make_watched(sampling: Sampling, vocabulary_tokens: int) -> Sampler:
        plain = make_plain(sampling, vocabulary_tokens)
        told = False

        def sample(logprobs: mx.array, position: int) -> mx.array:
            nonlocal told
            token = plain(logprobs, position)
            noisy = [plain(logprobs + _noise(logprobs), position) for _ in range(_TRIES)]
            if not told and any(one.item() != token.item() for one in noisy):
                told = True
                with found.open("a", encoding="ascii") as file:
                    file.write(f"{sampling.seed}\n")
            return token

        return sample

    text.make_sampler = make_watched  # type: ignore[attr-defined]


def _noise(logprobs: mx.array) -> mx.array:
    return mx.random.uniform(-_NOISE, _NOISE, logprobs.shape)
