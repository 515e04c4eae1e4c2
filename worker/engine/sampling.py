"""How a token is chosen from logits.

Sampling is counter-based: the random key of a token is a function of the request's seed and the token's
position, so neither the rest of the batch nor a restart of the worker changes what a seed gives.
"""

from collections.abc import Callable

import mlx.core as mx
from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p

from mlxsup.protocol.worker_link import Sampling

Sampler = Callable[[mx.array, int], mx.array]
LogitsProcessor = Callable[[mx.array, mx.array], mx.array]

_MASK64 = (1 << 64) - 1
# Below them float32 has no numbers left to tell tokens apart; the likeliest one it is, either way.
_TEMPERATURE_MIN = 1e-4
_TOP_P_MIN = 1e-6


def greedy(logprobs: mx.array, _position: int) -> mx.array:
    """The likeliest token; the only sampler that gives several rows theirs at once."""
    return mx.argmax(logprobs, axis=-1)


def make_sampler(sampling: Sampling, vocabulary_tokens: int) -> Sampler:
    """From log probabilities [1, vocabulary] and the position in the answer to a token [1]."""
    if sampling.temperature < _TEMPERATURE_MIN:
        return greedy
    inverse_temperature = 1.0 / sampling.temperature
    filters: list[Callable[[mx.array], mx.array]] = []
    if sampling.top_p < 1.0:
        top_p = max(sampling.top_p, _TOP_P_MIN)
        filters.append(lambda x: apply_top_p(x, top_p))
    if sampling.min_p > 0.0:
        filters.append(lambda x: apply_min_p(x, sampling.min_p))
    if 0 < sampling.top_k < vocabulary_tokens:
        filters.append(lambda x: apply_top_k(x, sampling.top_k))

    def sample(logprobs: mx.array, position: int) -> mx.array:
        for keep_likely in filters:
            logprobs = keep_likely(logprobs)
        key = mx.array(token_key(sampling.seed, position), dtype=mx.uint32)
        return mx.random.categorical(logprobs * inverse_temperature, key=key)

    return sample


def token_key(seed: int, position: int) -> tuple[int, int]:
    """Two 32-bit words that a seed and a position determine, by SplitMix64 (Steele, Lea, Flood 2014)."""
    z = (_mix(seed & _MASK64) + position * 0x9E3779B97F4A7C15) & _MASK64
    z = _mix(z)
    return z >> 32, z & 0xFFFFFFFF


def _mix(z: int) -> int:
    z = (z + 0x9E3779B97F4A7C15) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    return z ^ (z >> 31)


def make_logits_processors(sampling: Sampling, prompt_tokens: int) -> list[LogitsProcessor]:
    """Each takes all tokens so far [n] and logits [1, vocabulary], and gives logits back."""
    processors: list[LogitsProcessor] = []
    if sampling.logit_bias:
        processors.append(_bias(sampling.logit_bias))
    if sampling.repetition_penalty != 1.0:
        processors.append(_repetition(sampling.repetition_penalty))
    if sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0:
        processors.append(_occurrence(sampling.presence_penalty, sampling.frequency_penalty, prompt_tokens))
    return processors


def _bias(biases: dict[int, float]) -> LogitsProcessor:
    tokens = mx.array(list(biases))
    values = mx.array(list(biases.values()))

    def add_bias(_: mx.array, logits: mx.array) -> mx.array:
        return logits.at[:, tokens].add(values.astype(logits.dtype))

    return add_bias


def _repetition(penalty: float) -> LogitsProcessor:
    """Over prompt and answer; Keskar et al. 2019, https://arxiv.org/abs/1909.05858."""

    def penalise(tokens: mx.array, logits: mx.array) -> mx.array:
        chosen = logits[:, tokens]
        logits[:, tokens] = mx.where(chosen < 0, chosen * penalty, chosen / penalty)
        return logits

    return penalise


def _occurrence(presence: float, frequency: float, prompt_tokens: int) -> LogitsProcessor:
    """Over the answer only, as OpenAI's API defines the two."""

    def penalise(tokens: mx.array, logits: mx.array) -> mx.array:
        answer = tokens[prompt_tokens:]
        if answer.size == 0:
            return logits
        counts = mx.zeros((logits.shape[-1],), dtype=logits.dtype).at[answer].add(1)
        return logits - frequency * counts - presence * (counts > 0)

    return penalise
