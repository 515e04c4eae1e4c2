"""What the real engine makes of chats whose log probabilities are a little off, in a process without a supervisor.

Reads {"model", "chats", "noise"} on stdin, a chat being the params of that method, and writes a list of texts. Each log
probability is off by up to `noise`, each time by another amount.
"""

import json
import sys
from typing import Any

import mlx.core as mx
import msgspec

from mlxsup.config.schema import Generation
from mlxsup.protocol.generation import ChatParams
from mlxsup.protocol.worker_link import Load, Sampling
from mlxsup.supervisor.generation.translate import make_order
from mlxsup.worker.engine import text
from mlxsup.worker.engine.sampling import Sampler


def add_noise(noise: float) -> None:
    make_plain = text.make_sampler  # type: ignore[attr-defined]

    def make_noisy(sampling: Sampling, vocabulary_tokens: int) -> Sampler:
        plain: Sampler = make_plain(sampling, vocabulary_tokens)

        def sample(logprobs: mx.array, position: int) -> mx.array:
            return plain(logprobs + mx.random.uniform(-noise, noise, logprobs.shape), position)

        return sample

    text.make_sampler = make_noisy  # type: ignore[attr-defined]


def generate(folder: str, chats: list[dict[str, Any]]) -> list[str]:
    load = Load(
        model_path=folder,
        context_tokens_max=None,
        batch_sequences_max=8,
        prefill_chunk_tokens=512,
        float32=None,
        wired_limit_bytes=0,
        cache_limit_bytes=None,
        heartbeat_interval_s=1.0,
    )
    engine = text.TextEngine.load(load, lambda *_: None)
    for number, chat in enumerate(chats):
        params = msgspec.convert({"model": folder, **chat}, ChatParams)
        engine.submit(number, engine.prepare(make_order(params, Generation(), random_seed=0, now_unix_s=0.0)))
    texts = [""] * len(chats)
    running = set(range(len(chats)))
    while running:
        for emission in engine.step(lambda: False) or []:
            texts[emission.id] += emission.text
            if emission.finish is not None:
                running.discard(emission.id)
    return texts


def main() -> None:
    order = json.load(sys.stdin)
    add_noise(order["noise"])
    json.dump(generate(order["model"], order["chats"]), sys.stdout)


main()
