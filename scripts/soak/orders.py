"""What the streams ask for, and the text that each of them has to get. Pure."""

import random
from collections.abc import Iterator
from typing import Any

import msgspec

from scripts.benchmarks.prompts import PROMPTS
from scripts.faulty_worker.answers import faulty_text
from scripts.faulty_worker.script import Script

_SEED_MAX = 2**31


class Order(msgspec.Struct, frozen=True):
    """Params of `generate` without the model; `text` and `tokens` are what it gives where nothing dies."""

    params: dict[str, Any]
    text: str
    tokens: int


def scripted_orders(seed: int) -> Iterator[Order]:
    """Endless, for the faulty worker: texts of about a second, with prompts of up to a tenth of that."""
    chance = random.Random(f"orders {seed}")
    while True:
        script = Script(
            seed=chance.randrange(_SEED_MAX),
            token_ms=chance.uniform(3.0, 10.0),
            prefill_ms=chance.uniform(0.02, 0.1),
            prompt_tokens=chance.randint(5, 300),
        )
        tokens = chance.randint(20, 150)
        yield Order(
            {"prompt": script.prompt(), "max_tokens": tokens}, faulty_text(script.seed, tokens), tokens
        )


def drawn(orders: list[Order], seed: int) -> Iterator[Order]:
    """Endless: each of them once before any comes again."""
    chance = random.Random(f"drawn {seed}")
    while True:
        yield from chance.sample(orders, len(orders))


def model_params(seed: int, count: int) -> list[dict[str, Any]]:
    """For a real model: greedy and seeded in turns, some with penalties or with stop strings."""
    chance = random.Random(f"params {seed}")
    all_params = []
    for number in range(count):
        sentences = chance.sample(PROMPTS, chance.randint(1, 3))
        params: dict[str, Any] = {
            "prompt": " ".join(sentences),
            "max_tokens": chance.randint(32, 96),
            "temperature": 0,
            # Of no effect on a greedy text, but all have one to be known by.
            "seed": number * _SEED_MAX + chance.randrange(_SEED_MAX),
        }
        if number % 2:
            params |= {"temperature": 0.9, "top_p": 0.95}
        if number % 3 == 0:
            params |= {"repetition_penalty": 1.15, "frequency_penalty": 0.3}
        if number % 4 == 0:
            params |= {"stop": ["\n\n", "lighthouse keeper"]}
        all_params.append(params)
    return all_params
