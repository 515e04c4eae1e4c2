"""KV caches of few bits, of one sequence or of a batch. mlx-lm's own batched caches know none.

Each token's keys and values are quantised by themselves, so that neither the batch's company nor where a pass was cut changes
them. A row is padded on the left, as in mlx-lm's `BatchKVCache`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.cache import KVCache, dynamic_roll, make_prompt_cache

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.worker.engine.member import Caches

# Room is made for so many at a time.
_STEP_TOKENS = 256
_GROUP_SIZES = (64, 32)

Triple = tuple[mx.array, mx.array, mx.array]
"""Packed values, scales and biases, each [rows, heads, tokens, …]."""


class QuantisedCache:
    """`bits` and `group_size` are what mlx-lm's attention looks for."""

    def __init__(self, bits: int, group_size: int, left_padding: Sequence[int] = (0,)) -> None:
        self.bits = bits
        self.group_size = group_size
        self.left_padding = mx.array(list(left_padding))
        self.offset: Any = mx.array([-pad for pad in left_padding])
        self.keys: Triple | None = None
        self.values: Triple | None = None
        self.tokens = 0
        self._right_padding: mx.array | None = None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Triple, Triple]:
        """Both [rows, heads, tokens, head]."""
        new_keys = mx.quantize(keys, group_size=self.group_size, bits=self.bits)
        new_values = mx.quantize(values, group_size=self.group_size, bits=self.bits)
        self.keys = self._appended(self.keys, new_keys)
        self.values = self._appended(self.values, new_values)
        self.tokens += keys.shape[2]
        self.offset = self.offset + keys.shape[2]
        return _first(self.keys, self.tokens), _first(self.values, self.tokens)

    def _appended(self, held: Triple | None, new: Any) -> Triple:
        begin, count = self.tokens, new[0].shape[2]
        end = begin + count
        if held is None or held[0].shape[2] < end:
            room = (count + _STEP_TOKENS - 1) // _STEP_TOKENS * _STEP_TOKENS
            empty = _mapped(lambda part: mx.zeros((*part.shape[:2], room, part.shape[3]), part.dtype), new)
            held = (
                empty
                if held is None
                else _zipped(
                    lambda one, other: mx.concatenate([one, other], axis=2), _first(held, begin), empty
                )
            )
        for part, fresh in zip(held, new, strict=True):
            part[:, :, begin:end, :] = fresh
        return held

    def make_mask(self, tokens: int, **kwargs: Any) -> mx.array:
        kwargs.pop("return_array", None)
        mask: mx.array = create_causal_mask(
            tokens, offset=self.tokens, left_padding=self.left_padding, **kwargs
        )
        return mask

    # As a cache of rows:

    @property
    def state(self) -> list[mx.array]:
        return [*(self.keys or ()), *(self.values or ()), self.offset, self.left_padding]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (*(self.keys or ()), *(self.values or ())))

    def size(self) -> int:
        return self.tokens

    def empty(self) -> bool:
        return self.keys is None

    def is_trimmable(self) -> bool:
        return True

    def trim(self, tokens: int) -> int:
        tokens = min(tokens, self.tokens)
        self.tokens -= tokens
        self.offset = self.offset - tokens
        return tokens

    def prepare(self, *, right_padding: Sequence[int], **_lengths: Any) -> None:
        self._right_padding = mx.array(list(right_padding))

    def finalize(self) -> None:
        padding = self._right_padding
        if padding is not None and self.keys is not None and self.values is not None:

            def roll(part: mx.array) -> mx.array:
                rolled: mx.array = dynamic_roll(part, padding[:, None], axis=2)
                return rolled

            self.keys = _mapped(roll, _first(self.keys, self.tokens))
            self.values = _mapped(roll, _first(self.values, self.tokens))
            self.offset = self.offset - padding
            self.left_padding = self.left_padding + padding
            self._right_padding = None

    def filter(self, rows: Sequence[int]) -> None:
        at = mx.array(list(rows))
        self.offset, self.left_padding = self.offset[at], self.left_padding[at]
        if self.keys is not None and self.values is not None:
            self.keys = _mapped(lambda part: part[at], self.keys)
            self.values = _mapped(lambda part: part[at], self.values)

    def extend(self, other: "QuantisedCache") -> None:
        tokens = max(self.tokens, other.tokens)
        for name in ("keys", "values"):
            shape_of: Triple | None = getattr(self, name) or getattr(other, name)
            if shape_of is not None:
                both = [_padded(each, name, tokens, shape_of) for each in (self, other)]
                setattr(self, name, _zipped(lambda one, more: mx.concatenate([one, more]), both[0], both[1]))
        paddings = [each.left_padding + (tokens - each.tokens) for each in (self, other)]
        self.left_padding = mx.concatenate(paddings)
        self.offset = mx.concatenate([self.offset, other.offset])
        self.tokens = tokens

    def extract(self, row: int) -> "QuantisedCache":
        """A copy of that row alone, without its padding."""
        padding = _as_int(self.left_padding[row])
        one = QuantisedCache(self.bits, self.group_size)
        one.tokens = self.tokens - padding
        one.offset = mx.array([one.tokens])
        if self.keys is not None and self.values is not None:

            def cut(part: mx.array) -> mx.array:
                return mx.contiguous(part[row : row + 1, :, padding : self.tokens])

            one.keys, one.values = _mapped(cut, self.keys), _mapped(cut, self.values)
        return one

    @classmethod
    def merge(cls, caches: Sequence["QuantisedCache"]) -> "QuantisedCache":
        first, *others = caches
        whole = cls(first.bits, first.group_size)
        whole.keys, whole.values, whole.tokens = first.keys, first.values, first.tokens
        whole.offset, whole.left_padding = first.offset, first.left_padding
        for other in others:
            whole.extend(other)
        if not others and whole.keys is not None and whole.values is not None:
            # What is written into it next is no part of what it was made of.
            whole.keys = _mapped(lambda part: part[:], whole.keys)
            whole.values = _mapped(lambda part: part[:], whole.values)
        return whole


class CacheMaker:
    """Makes a sequence's empty caches: mlx-lm's own, or of so many bits.

    Raises:
        RpcError: UNSUPPORTED where the model's layers keep something else.
    """

    def __init__(self, model: nn.Module, bits: int | None) -> None:
        self._model = model
        self._bits = bits
        self._group_size = 0 if bits is None else _group_size(model)

    def make(self) -> Caches:
        caches: Caches = make_prompt_cache(self._model)
        if self._bits is None:
            return caches
        return [QuantisedCache(self._bits, self._group_size) for _ in caches]


def _group_size(model: nn.Module) -> int:
    probe = make_prompt_cache(model)
    if any(type(cache) is not KVCache for cache in probe):
        raise _unsupported("its layers do not all keep plain keys and values")
    # Shapes are known without computing anything.
    model(mx.zeros((1, 1), dtype=mx.int32), cache=probe)
    head = min(min(cache.keys.shape[-1], cache.values.shape[-1]) for cache in probe)
    for size in _GROUP_SIZES:
        if head % size == 0:
            return size
    raise _unsupported(f"its heads of {head} values are no multiple of {_GROUP_SIZES[-1]}")


def _unsupported(why: str) -> RpcError:
    return RpcError(
        ErrorKind.UNSUPPORTED,
        f"`kv_bits` can't be had for this model: {why}; leave `kv_bits` out",
        path="$.kv_bits",
    )


def _padded(cache: QuantisedCache, name: str, tokens: int, shape_of: Triple) -> Triple:
    """So many tokens of its keys or values, with nothing in the first ones."""
    held: Triple | None = getattr(cache, name)
    rows = cache.offset.shape[0]

    def nothing(part: mx.array, count: int) -> mx.array:
        return mx.zeros((rows, part.shape[1], count, part.shape[3]), part.dtype)

    if held is None:
        return _mapped(lambda part: nothing(part, tokens), shape_of)
    missing = tokens - cache.tokens
    own = _first(held, cache.tokens)
    return _mapped(lambda part: mx.concatenate([nothing(part, missing), part], axis=2), own)


def _first(held: Triple, tokens: int) -> Triple:
    return _mapped(lambda part: part[:, :, :tokens, :], held)


def _mapped(change: Callable[[mx.array], mx.array], parts: Any) -> Triple:
    packed, scales, biases = parts
    return change(packed), change(scales), change(biases)


def _zipped(join: Callable[[mx.array, mx.array], mx.array], one: Triple, other: Triple) -> Triple:
    return join(one[0], other[0]), join(one[1], other[1]), join(one[2], other[2])


def _as_int(scalar: mx.array) -> int:
    value = scalar.item()
    assert isinstance(value, int)
    return value
