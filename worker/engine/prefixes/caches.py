"""What a stretch of tokens has in the KV caches of a model: cut out of a batch's, and put together for a sequence.

Plain caches, which hold each token's keys and values side by side, are cut into pieces. Of models with any others, which
only look back so far or keep one state for all of a text, the caches are kept as they were at one point, and are of use for
what goes on from there.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import msgspec
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models import cache as mlx_lm_cache
from mlx_lm.models.cache import KVCache, make_prompt_cache

from mlxsup.worker.engine.member import Caches

Layer = tuple[mx.array, mx.array]
"""Keys and values of shape [1, heads, tokens, dimensions]."""


class Piece(msgspec.Struct, frozen=True, eq=False):
    """Of plain caches: one entry for each layer."""

    layers: list[Layer]

    def arrays(self) -> list[mx.array]:
        return [array for layer in self.layers for array in layer]


class Whole(msgspec.Struct, frozen=True, eq=False):
    """Caches of one sequence as they were at one point, which nobody changes."""

    caches: Caches

    def arrays(self) -> list[mx.array]:
        leaves: list[tuple[str, Any]] = tree_flatten([cache.state for cache in self.caches])  # type: ignore[assignment]
        return [leaf for _, leaf in leaves if isinstance(leaf, mx.array)]


Kept = Piece | Whole


def is_cuttable(model: nn.Module) -> bool:
    return all(type(cache) is KVCache for cache in make_prompt_cache(model))


def cut_piece(caches: Caches, row: int, first: int, last: int) -> Piece:
    """A copy, not computed yet, of what plain caches have of the tokens from `first` up to `last`, at least two, in a row of a
    batch or in the only one.
    """
    padding = 0
    if not isinstance(caches[0], KVCache):
        padding = int(caches[0].left_padding[row].item())
    first, last = first + padding, last + padding
    # Put together of two halves, it is never a view that holds on to all it was cut from.
    middle = (first + last) // 2

    def cut(array: mx.array) -> mx.array:
        of_row = array[row : row + 1]
        return mx.concatenate([of_row[:, :, first:middle], of_row[:, :, middle:last]], axis=2)

    return Piece([(cut(cache.keys), cut(cache.values)) for cache in caches])


def join_pieces(pieces: Sequence[tuple[Piece, int, int]]) -> Caches:
    """Plain caches of one sequence, of each piece the tokens from one number of it up to another."""
    caches: Caches = []
    for layers in zip(*(piece.layers for piece, _, _ in pieces), strict=True):
        cache = KVCache()
        cache.keys, cache.values = (
            _joined(
                [
                    layer[side][:, :, first:last]
                    for layer, (_, first, last) in zip(layers, pieces, strict=True)
                ]
            )
            for side in (0, 1)
        )
        cache.offset = cache.keys.shape[2]
        caches.append(cache)
    return caches


def copy_whole(whole: Whole) -> Caches:
    """With arrays of their own: to change these in place changes nothing of what is kept."""
    return [type(cache).from_state(_copied(cache.state)) for cache in whole.caches]


def cache_class(name: str) -> Any:
    """The class of mlx-lm's caches that is called so.

    Raises:
        ValueError: there is none.
    """
    found = getattr(mlx_lm_cache, name, None)
    if not (isinstance(found, type) and issubclass(found, mlx_lm_cache._BaseCache)):  # noqa: SLF001
        raise ValueError(f"mlx-lm has no cache {name[:40]}")
    return found


def _joined(arrays: list[mx.array]) -> mx.array:
    return arrays[0] if len(arrays) == 1 else mx.concatenate(arrays, axis=2)


def _copied(state: Any) -> Any:
    return tree_map(lambda leaf: mx.array(leaf) if isinstance(leaf, mx.array) else leaf, state)
