"""The real engine by itself: `parks.py FOLDER PARKED_BYTES_MAX` has sequences give way in the middle and go on.

It prints one JSON text: of each sequence its tokens and text undisturbed, those with a break, how many tokens of its
prompt came from the cache that was kept; what the engine says that a token of the cache takes, and what it was seen to
take.
"""

import json
import sys
from typing import Any

import mlx.core as mx
from msgspec.structs import replace

from mlxsup.protocol.worker_link import Generate, Load, Sampling
from mlxsup.worker.engine.interface import Emission
from mlxsup.worker.engine.text import TextEngine

GREEDY = Sampling(
    temperature=0.0,
    top_p=1.0,
    top_k=0,
    min_p=0.0,
    repetition_penalty=1.0,
    presence_penalty=0.0,
    frequency_penalty=0.0,
    seed=1,
)
TOKENS = 12
CHUNK = 32
ORDERS = [
    Generate(max_tokens=TOKENS, sampling=GREEDY, prompt="Once upon a time"),
    Generate(max_tokens=TOKENS, sampling=GREEDY, prompt="The capital of France is", stop=("answer is",)),
    Generate(max_tokens=TOKENS, sampling=replace(GREEDY, repetition_penalty=1.3), prompt="la la la la la"),
    Generate(max_tokens=TOKENS, sampling=replace(GREEDY, temperature=0.5, seed=3), prompt="A list of birds:"),
    # Several chunks: it gives way before its first token.
    Generate(max_tokens=TOKENS, sampling=GREEDY, prompt="One, two, three, four, five, six. " * 12),
]
# Steps before each of them gives way; all together, so that caches of different lengths stand side by side.
BREAKS = (3, 6, 5, 8, 3)
SEEN_TOKENS = 512


class Run:
    def __init__(self, engine: TextEngine, orders: list[Generate]) -> None:
        self._engine = engine
        self._orders = orders
        self.emissions: list[list[Emission]] = [[] for _ in orders]
        self.running = set(range(len(orders)))
        for id in self.running:
            self._submit(id)

    def _submit(self, id: int) -> None:
        got = self.emissions[id]
        order = replace(
            self._orders[id],
            delivered_tokens=[token for emission in got for token in emission.tokens],
            delivered_chars=sum(len(emission.text) for emission in got),
        )
        self._engine.submit(id, self._engine.prepare(order))

    def step(self) -> None:
        for emission in self._engine.step(lambda: False) or []:
            self.emissions[emission.id].append(emission)
            if emission.finish is not None:
                self.running.discard(emission.id)

    def give_way(self, id: int) -> None:
        self._engine.give_way(id)
        self.running.discard(id)

    def go_on(self, id: int) -> None:
        self._submit(id)
        self.running.add(id)

    def finish(self) -> None:
        while self.running:
            self.step()

    def answers(self) -> list[dict[str, Any]]:
        return [
            {
                "text": "".join(emission.text for emission in emissions),
                "tokens": [token for emission in emissions for token in emission.tokens],
                "finish": emissions[-1].finish,
            }
            for emissions in self.emissions
        ]


def bytes_of_tokens(engine: TextEngine, tokens: int) -> int:
    """What is in memory while a sequence of so many tokens is computed, and nothing else."""
    engine.submit(99, engine.prepare(replace(ORDERS[0], prompt=None, prompt_tokens=[5] * tokens)))
    while not engine.step(lambda: False):
        pass
    mx.synchronize()
    mx.clear_cache()
    held = mx.get_active_memory()
    engine.cancel(99)
    return int(held)


def main(folder: str, parked_bytes_max: int) -> None:
    load = Load(
        model_path=folder,
        context_tokens_max=2048,
        batch_sequences_max=8,
        prefill_chunk_tokens=CHUNK,
        float32=None,
        wired_limit_bytes=0,
        cache_limit_bytes=None,
        heartbeat_interval_s=1.0,
        parked_bytes_max=parked_bytes_max,
    )
    engine = TextEngine.load(load, lambda *_: None)
    undisturbed = []
    for order in ORDERS:
        alone = Run(engine, [order])
        alone.finish()
        undisturbed += alone.answers()
    run = Run(engine, ORDERS)
    out: list[int] = []
    for step in range(max(BREAKS) + 1):
        for id, at in enumerate(BREAKS):
            if at == step and id in run.running:
                run.give_way(id)
                out.append(id)
        run.step()
    for id in out:
        run.go_on(id)
    run.finish()
    short, long = bytes_of_tokens(engine, 256), bytes_of_tokens(engine, 256 + SEEN_TOKENS)
    print(
        json.dumps(
            {
                "undisturbed": undisturbed,
                "broken": run.answers(),
                "cached": [emissions[-1].cached_tokens for emissions in run.emissions],
                "prompts": [len(engine.prepare(order).prompt_tokens) for order in ORDERS],
                "gave_way": sorted(out),
                "kv_bytes_per_token": engine.loaded.kv_bytes_per_token,
                "seen_bytes_per_token": (long - short) / SEEN_TOKENS,
            }
        )
    )


main(sys.argv[1], int(sys.argv[2]))
