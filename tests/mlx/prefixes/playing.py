"""Sequences played through a batch, step by step."""

import math
from collections.abc import Callable

import mlx.nn as nn

from mlxsup.worker.engine.batch import Batch
from mlxsup.worker.engine.loading import kv_bytes_per_token
from mlxsup.worker.engine.member import Member
from mlxsup.worker.engine.prefixes.caches import is_cuttable
from mlxsup.worker.engine.prefixes.disk import Disk
from mlxsup.worker.engine.prefixes.prefixes import Prefixes
from mlxsup.worker.engine.quantised import CacheMaker
from tests.mlx.prefixes.models import ANSWER_TOKENS

CHUNK = 64
MUCH = 1 << 30


def open_prefixes(model: nn.Module, bytes_max: int = MUCH, disk: Disk | None = None) -> Prefixes:
    return Prefixes(
        is_cuttable=is_cuttable(model),
        bytes_max=bytes_max,
        bytes_per_token=kv_bytes_per_token(model, CacheMaker(model, None)),
        disk=disk,
        disk_tokens_min=16,
    )


def open_batch(
    model: nn.Module, prefixes: Prefixes, *, chunk_tokens: int = CHUNK, target_s: float = math.inf
) -> Batch:
    return Batch(model, sequences_max=16, chunk_tokens=chunk_tokens, target_s=target_s, prefixes=prefixes)


def never() -> bool:
    return False


def run(batch: Batch, *members: Member, is_wanted: Callable[[], bool] = never) -> list[list[int]]:
    """Until each of these has its tokens."""
    answers: dict[int, list[int]] = {each.id: [] for each in members}
    left = {each.id: each for each in members}
    for each in members:
        batch.add(each)
    while left:
        for choice in batch.step(is_wanted) or []:
            if choice.id in left:
                answers[choice.id].append(choice.token)
                if len(answers[choice.id]) == ANSWER_TOKENS:
                    batch.remove([left.pop(choice.id)])
    return [answers[each.id] for each in members]


def computed(*members: Member) -> list[int]:
    """So many tokens of the prompt of each were computed for it."""
    return [each.prompt_tokens - each.taken for each in members]
