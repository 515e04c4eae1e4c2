"""The KV caches of sequences that are computed together: mlx-lm's batched ones, one for each layer."""

from mlxsup.worker.engine.member import Caches, Member


def merged(members: list[Member]) -> Caches:
    """A row for each member, from its own caches; shorter ones are padded on the left."""
    return [type(layer[0]).merge(list(layer)) for layer in zip(*(m.caches for m in members), strict=True)]


def extended(caches: Caches, others: Caches) -> Caches:
    """The rows of `others` behind those of `caches`, which are changed in place; none at all are an empty list."""
    if not caches:
        return others
    for cache, other in zip(caches, others, strict=True):
        cache.extend(other)
    return caches


def keep_rows(caches: Caches, rows: list[int]) -> None:
    """Only those, in that order, in place; without any the caches are let go."""
    if rows:
        for cache in caches:
            cache.filter(rows)
    else:
        caches.clear()


def shift_out(caches: Caches, columns: list[int]) -> None:
    """So many of the last columns of each row go, as if they had never been computed. Of mlx-lm's plain batched caches only."""
    together = min(columns, default=0)
    apart = [count - together for count in columns]
    for cache in caches:
        if together:
            cache.trim(together)
        if any(apart):
            cache.prepare(lengths=None, right_padding=apart)
            cache.finalize()
