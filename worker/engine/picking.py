"""From logits to tokens: penalties and biases, what a grammar allows, the choice, and how likely it was."""

from collections.abc import Sequence

import mlx.core as mx
import msgspec
import numpy as np

from mlxsup.protocol.errors import RpcError
from mlxsup.worker.engine.grammar.constraint import Constraint
from mlxsup.worker.engine.member import Chances, Member
from mlxsup.worker.engine.sampling import greedy


class Spot(msgspec.Struct, frozen=True):
    """Where a token is chosen: behind the member's tokens and `guessed` ones."""

    member: Member
    guessed: Sequence[int] = ()


def pick(spots: Sequence[Spot], logits: mx.array) -> tuple[mx.array, list[Chances | None]]:
    """Tokens [spots] from logits [spots, vocabulary], and the chances of those that are told of them."""
    bent = _bent(spots, logits)
    if all(spot.member.sampler is greedy for spot in spots):
        tokens = greedy(bent, 0)
    else:
        logprobs = bent - mx.logsumexp(bent, axis=-1, keepdims=True)
        tokens = mx.concatenate([_sample(spot, logprobs[at : at + 1]) for at, spot in enumerate(spots)])
    return tokens, [
        None
        if spot.member.logprobs is None
        else _chances(logits[at], tokens[at : at + 1], spot.member.logprobs)
        for at, spot in enumerate(spots)
    ]


def _bent(spots: Sequence[Spot], logits: mx.array) -> mx.array:
    """The logits by which a token is chosen."""
    if not any(spot.member.processors or spot.member.constraint for spot in spots):
        return logits
    rows = []
    for at, spot in enumerate(spots):
        row = logits[at : at + 1]
        member = spot.member
        if member.processors:
            tokens = mx.array([*member.tokens, *spot.guessed])
            for process in member.processors:
                row = process(tokens, row)
        if member.constraint is not None:
            row = _allowed(member, member.constraint, row)
        rows.append(row)
    return mx.concatenate(rows, axis=0)


def _allowed(member: Member, constraint: Constraint, row: mx.array) -> mx.array:
    tokens_left = member.tokens_max - len(member.tokens)
    # Behind the last token that is told a pass is under way already, and what it chooses is nothing.
    if tokens_left <= 0 or member.failure is not None:
        return row
    try:
        bits = constraint.allowed(tokens_left)
    except RpcError as error:
        member.failure = error
        return row
    if bits is None:
        return row
    return mx.where(_mask(bits, row.shape[-1]), row, mx.array(-mx.inf, row.dtype))


def _mask(bits: np.ndarray, vocabulary: int) -> mx.array:
    """[vocabulary] booleans; a model's rows of no token are False."""
    mask = np.zeros(vocabulary, dtype=np.bool_)
    allowed = np.unpackbits(bits.view(np.uint8), bitorder="little")[:vocabulary]
    mask[: len(allowed)] = allowed
    return mx.array(mask)


def _sample(spot: Spot, logprobs: mx.array) -> mx.array:
    member = spot.member
    return member.sampler(logprobs, len(member.tokens) - member.prompt_tokens + len(spot.guessed))


def _chances(logits: mx.array, token: mx.array, top: int) -> Chances:
    logprobs = logits.astype(mx.float32) - mx.logsumexp(logits.astype(mx.float32))
    likeliest = mx.argpartition(-logprobs, kth=top)[:top] if top else mx.array([], dtype=mx.uint32)
    order = mx.argsort(-logprobs[likeliest]) if top else likeliest
    tokens = likeliest[order]
    return Chances(chosen=logprobs[token], top_tokens=tokens, top=logprobs[tokens])
