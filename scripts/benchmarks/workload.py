"""What is asked of a server under load: of a real model, or of the engine that keeps a fixed pace. Pure."""

import random
from collections.abc import Iterator
from typing import Any, Protocol

from scripts.benchmarks.cli import child_command
from scripts.benchmarks.null_engine import flood_text
from scripts.benchmarks.prompts import PROMPTS
from scripts.benchmarks.supervisor_child import MODEL
from scripts.benchmarks.timed import Speed, timed_prompt
from scripts.benchmarks.traffic import Order

_SEED_MAX = 2**31
# Of a sentence of PROMPTS.
_SENTENCE_TOKENS = 22
# What a chat has around its user's notes.
_FRAME_TOKENS = 48

_NULL_SPEED = Speed(step_ms=10.0, answer_ms=0.5, prompt_token_ms=0.25)


class Workload(Protocol):
    """`worker` are keys of `[worker]`; texts have about as many tokens as asked for."""

    worker: dict[str, Any]

    def text(self, chance: random.Random, prompt_tokens: int, answer_tokens: int) -> Order: ...

    def chat(self, chance: random.Random, prompt_tokens: int, answer_tokens: int) -> Order: ...


class ModelWorkload:
    """Greedy texts of the real model."""

    def __init__(self) -> None:
        self.worker: dict[str, Any] = {}

    def text(self, chance: random.Random, prompt_tokens: int, answer_tokens: int) -> Order:
        return Order("generate", _greedy(answer_tokens) | {"prompt": _sentences(chance, prompt_tokens)})

    def chat(self, chance: random.Random, prompt_tokens: int, answer_tokens: int) -> Order:
        notes = _sentences(chance, prompt_tokens - _FRAME_TOKENS)
        messages = [
            {"role": "system", "content": "You are a helpful assistant. Answer briefly, in plain words."},
            {"role": "user", "content": f"Here are my notes. {notes} What are they about, in one sentence?"},
        ]
        return Order("chat", _greedy(answer_tokens) | {"messages": messages})


class NullWorkload:
    """Texts that the order itself determines, at `_NULL_SPEED`."""

    def __init__(self) -> None:
        self.worker: dict[str, Any] = {"command": child_command("null-worker")}

    def text(self, chance: random.Random, prompt_tokens: int, answer_tokens: int) -> Order:
        seed = chance.randrange(_SEED_MAX)
        prompt = timed_prompt(seed, prompt_tokens, _NULL_SPEED)
        params = _greedy(answer_tokens) | {"prompt": prompt}
        return Order("generate", params, flood_text(seed, answer_tokens))

    chat = text


WORKLOADS: dict[str, type[ModelWorkload | NullWorkload]] = {"model": ModelWorkload, "null": NullWorkload}


def texts(
    workload: Workload, seed: int, prompt_tokens: int, answer_tokens: int, **params: Any
) -> Iterator[Order]:
    """Texts with these params besides."""
    chance = random.Random(f"texts {seed}")
    while True:
        yield with_params(workload.text(chance, prompt_tokens, answer_tokens), **params)


def chats(
    workload: Workload, seed: int, prompt_tokens: int, answer_tokens: int, **params: Any
) -> Iterator[Order]:
    """Endless, likewise."""
    chance = random.Random(f"chats {seed}")
    while True:
        yield with_params(workload.chat(chance, prompt_tokens, answer_tokens), **params)


def with_params(order: Order, **params: Any) -> Order:
    return Order(order.method, order.params | params, order.text)


def _greedy(answer_tokens: int) -> dict[str, Any]:
    return {"model": MODEL, "max_tokens": answer_tokens, "temperature": 0}


def _sentences(chance: random.Random, tokens: int) -> str:
    """Never more than there are, and at least one."""
    count = max(1, min(len(PROMPTS), round(tokens / _SENTENCE_TOKENS)))
    return " ".join(chance.sample(PROMPTS, count))
