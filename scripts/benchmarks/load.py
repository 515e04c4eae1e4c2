"""A load of text requests, put on a supervisor by the Trio client on one connection."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import trio

from mlxsup.protocol.client.aio import Client, connect
from mlxsup.protocol.generation import GenerationResult
from scripts.benchmarks.supervisor_child import MODEL


class Answer(msgspec.Struct, frozen=True):
    """`pieces` counts the deltas in which the text came."""

    text: str
    pieces: int
    result: GenerationResult


class Run(msgspec.Struct, frozen=True):
    """`seconds` is from the first request's submission to the last token of the last answer."""

    seconds: float
    answers: list[Answer]

    @property
    def tokens(self) -> int:
        return sum(answer.result.usage.completion_tokens for answer in self.answers)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


def run_streams(
    socket: Path,
    prompts: Sequence[str],
    max_tokens: int,
    models: Sequence[str] = (MODEL,),
    more_params: Callable[[int], dict[str, Any]] = lambda _: {},
) -> Run:
    """All prompts at once, each as a stream; the models get them in turn. Greedily, if `more_params` of the prompt with that
    number do not say otherwise.
    """
    return trio.run(_run_streams, socket, prompts, max_tokens, models, more_params)


async def _run_streams(
    socket: Path,
    prompts: Sequence[str],
    max_tokens: int,
    models: Sequence[str],
    more_params: Callable[[int], dict[str, Any]],
) -> Run:
    answers: dict[int, Answer] = {}

    async def ask(client: Client, index: int, prompt: str) -> None:
        params = {
            "model": models[index % len(models)],
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            **more_params(index),
        }
        async with client.stream("generate", params) as stream:
            pieces = [piece async for piece in stream]
        assert stream.result is not None
        answers[index] = Answer("".join(pieces), len(pieces), stream.result)

    async with connect(socket) as client:
        started_s = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for index, prompt in enumerate(prompts):
                nursery.start_soon(ask, client, index, prompt)
        seconds = time.perf_counter() - started_s
    return Run(seconds, [answers[index] for index in range(len(prompts))])
