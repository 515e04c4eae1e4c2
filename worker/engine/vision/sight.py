"""What one sequence sees, and the model that is shown it: rows with pictures and rows without are computed together."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import msgspec
import numpy.typing as npt

# Of model types: those that can be shown pictures.
KINDS = frozenset({"llava", "qwen2_vl", "qwen2_5_vl", "phi3_v"})


class Seen(msgspec.Struct, frozen=True, eq=False):
    """One picture as the model takes it: `arrays` are its tower's, and so many `tokens` stand for it in the prompt."""

    tokens: int
    arrays: dict[str, npt.NDArray[Any]]


class Sight(msgspec.Struct, eq=False, kw_only=True):
    """Of a prompt with pictures. `places` are those of their first tokens in it.

    `embeddings`, of shape [tokens, dimensions], are those of the prompt up to its last picture, once all are `looked` at, and
    until they are read. `positions` of shape [3, tokens] are those of the prompt where a model counts them in three directions,
    and go on behind it with `shift` beside the usual ones. Pictures of the same `digest` are the same.
    """

    pictures: list[Seen]
    places: list[int]
    looked: list[mx.array] = msgspec.field(default_factory=list)
    embeddings: mx.array | None = None
    positions: mx.array | None = None
    shift: int = 0
    digest: str = ""

    @property
    def end(self) -> int:
        """The place behind the last picture."""
        return self.places[-1] + self.pictures[-1].tokens


class Seeing(msgspec.Struct, frozen=True, eq=False):
    """Of a row of a pass: from which token on it is read, if it sees anything."""

    begin: int
    sight: Sight | None


class SightedModel(nn.Module):
    """mlx-vlm's model, called as one of mlx-lm is."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sighted = model
        self._counts_in_three = hasattr(model.language_model, "get_rope_index")

    @property
    def layers(self) -> Any:
        return self.sighted.layers

    @property
    def language_model(self) -> Any:
        return self.sighted.language_model

    def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
        return self.see([Seeing(0, None)] * inputs.shape[0], inputs, cache)

    def see(self, rows: Sequence[Seeing], inputs: mx.array, cache: Any) -> mx.array:
        """Logits [rows, tokens, vocabulary], built and not computed."""
        more = {"position_ids": self._positions(rows, inputs, cache)} if self._counts_in_three else {}
        embeddings = self._embeddings(rows, inputs)
        logits: mx.array = self.language_model(inputs, inputs_embeds=embeddings, cache=cache, **more).logits
        return logits

    def look(self, picture: Seen, token: int) -> mx.array:
        """Its embeddings, of shape [tokens, dimensions], built and not computed."""
        arrays = {name: mx.array(values) for name, values in picture.arrays.items()}
        found = self.sighted.get_input_embeddings(mx.array([[token] * picture.tokens]), **arrays)
        embeddings: mx.array = found.inputs_embeds[0]
        return embeddings

    def assemble(self, sight: Sight, tokens: list[int]) -> mx.array:
        """The embeddings of a prompt of those tokens up to its last picture, when all are looked at."""
        of_text = self._embed(mx.array(tokens[: sight.end]))
        pieces, done = [], 0
        for place, looked in zip(sight.places, sight.looked, strict=True):
            pieces += [of_text[done:place], looked.astype(of_text.dtype)]
            done = place + looked.shape[0]
        return mx.concatenate(pieces)

    def count(self, sight: Sight, tokens: list[int]) -> None:
        """Say where the tokens of the prompt are, with those in `tokens` that the model's own code looks for."""
        if not self._counts_in_three:
            return
        grids = mx.array([picture.arrays["image_grid_thw"][0].tolist() for picture in sight.pictures])
        positions, shift = self.language_model.get_rope_index(mx.array([tokens]), grids)
        sight.positions, sight.shift = positions[:, 0].astype(mx.int32), int(shift.item())
        mx.eval(sight.positions)

    def _embed(self, inputs: mx.array) -> mx.array:
        embeddings: mx.array = self.language_model.model.embed_tokens(inputs)
        return embeddings

    def _embeddings(self, rows: Sequence[Seeing], inputs: mx.array) -> mx.array:
        embeddings = self._embed(inputs)
        if not any(row.sight is not None and row.begin < row.sight.end for row in rows):
            return embeddings
        width = inputs.shape[1]
        return mx.stack([_shown(row, embeddings[at], width) for at, row in enumerate(rows)])

    def _positions(self, rows: Sequence[Seeing], inputs: mx.array, cache: Any) -> mx.array:
        """Of shape [3, rows, tokens]."""
        height, width = inputs.shape
        offset = cache[0].offset if cache else 0
        first = offset[:, None] if isinstance(offset, mx.array) and offset.ndim else offset
        plain = mx.broadcast_to(first + mx.arange(width, dtype=mx.int32), (height, width))
        if all(row.sight is None for row in rows):
            return mx.broadcast_to(plain, (3, height, width))
        return mx.stack([_positions(row.sight, plain[at]) for at, row in enumerate(rows)], axis=1)


def _shown(row: Seeing, of_text: mx.array, width: int) -> mx.array:
    """The embeddings of one row, [tokens, dimensions]."""
    if row.sight is None or row.begin >= row.sight.end:
        return of_text
    assert row.sight.embeddings is not None, "it is looked at before it is read"
    seen = row.sight.embeddings[row.begin : row.begin + width]
    return mx.concatenate([seen, of_text[seen.shape[0] :]])


def _positions(sight: Sight | None, plain: mx.array) -> mx.array:
    """Of one row, [3, tokens]."""
    if sight is None or sight.positions is None:
        return mx.broadcast_to(plain, (3, plain.shape[0]))
    tokens = sight.positions.shape[1]
    inside = sight.positions[:, mx.clip(plain, 0, tokens - 1)]
    return mx.where(plain < tokens, inside, plain + sight.shift)
