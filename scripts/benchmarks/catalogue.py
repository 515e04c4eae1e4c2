"""Texts to compare with: what each order gives when it is computed alone, for orders whose text rounding does not decide."""

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from mlxsup.protocol.client.aio import Client
from scripts.benchmarks.supervisor_child import MODEL, Say
from scripts.benchmarks.traffic import Order, Traffic
from scripts.benchmarks.workload import Workload, with_params

_WATCHED_STREAMS = 8


class Catalogue(msgspec.Struct, frozen=True):
    """`left_out` are as many whose texts rounding decides."""

    orders: list[Order]
    left_out: int

    def drawn(self, seed: int, **params: Any) -> Iterator[Order]:
        """Endless: each of them once before any comes again."""
        chance = random.Random(f"drawn {seed}")
        while True:
            for order in chance.sample(self.orders, len(self.orders)):
                yield with_params(order, **params)


def draw_orders(
    workload: Workload,
    seed: int,
    count: int,
    prompt_tokens: tuple[int, int],
    answer_tokens: tuple[int, int],
) -> list[Order]:
    """Of lengths between these bounds, each with a seed of its own to be known by."""
    chance = random.Random(f"catalogue {seed}")
    return [
        with_params(
            workload.text(chance, chance.randint(*prompt_tokens), chance.randint(*answer_tokens)), seed=number
        )
        for number in range(count)
    ]


def find_doubtful(orders: list[Order], model_folder: Path, seed: int, say: Say) -> set[int]:
    """Seeds of greedy orders for the real model whose texts rounding decides, by a supervisor of its own."""
    from scripts.soak.setting import Soak
    from scripts.soak.undisturbed import watch

    say(f"computing {len(orders)} texts, to find those that rounding decides")
    soak = Soak(model=MODEL, deaths=0, causes=(), streams=_WATCHED_STREAMS, other_streams=0, seed=seed)
    all_params = [
        {name: value for name, value in order.params.items() if name != "model"} for order in orders
    ]
    with tempfile.TemporaryDirectory(prefix="mlxsup-bench-") as folder:
        return watch(soak, Path(folder) / "watched", model_folder, all_params).doubtful


async def compute_alone(
    client: Client, orders: list[Order], doubtful: set[int], limit_s: float, say: Say
) -> Catalogue:
    """Their texts, one after the other, without those that are `doubtful`. A text that an order says has to come.

    Raises:
        RuntimeError: one was not answered, or with another text, or none is left.
    """
    kept = []
    say(f"computing {len(orders) - len(doubtful)} texts, each alone")
    traffic = Traffic(client, limit_s)
    for order in orders:
        if order.params["seed"] in doubtful:
            continue
        asked = await traffic.ask(order)
        if asked.result is None or asked.fault or asked.differs:
            raise RuntimeError(
                f"a text was not computed: {asked.fault or asked.error or 'it is another one'}"
            )
        kept.append(msgspec.structs.replace(order, text=asked.result.text))
    if not kept:
        raise RuntimeError("rounding decides all of these texts: choose another seed")
    return Catalogue(kept, len(orders) - len(kept))
