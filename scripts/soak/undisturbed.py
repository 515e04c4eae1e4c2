"""The texts that a real model gives where nothing dies."""

from typing import Any

import msgspec
import trio

from mlxsup.protocol.client.aio import Client
from mlxsup.protocol.generation import GenerationResult
from scripts.soak.orders import Order


class Undisturbed(msgspec.Struct, frozen=True):
    """`unstable` are params of texts that are left out: they came out differently in different company."""

    orders: list[Order]
    unstable: list[dict[str, Any]]


async def undisturbed(
    client: Client, model: str, all_params: list[dict[str, Any]], streams: int, limit_s: float
) -> Undisturbed:
    """Each text is computed twice, in different company."""
    first = await _answers(client, model, all_params, streams, limit_s)
    second = await _answers(client, model, all_params[::-1], streams, limit_s)
    found = list(zip(all_params, first, second[::-1], strict=True))
    return Undisturbed(
        [
            Order(p, one.text, one.usage.completion_tokens)
            for p, one, other in found
            if one.text == other.text
        ],
        [params for params, one, other in found if one.text != other.text],
    )


async def _answers(
    client: Client, model: str, all_params: list[dict[str, Any]], streams: int, limit_s: float
) -> list[GenerationResult]:
    answers: dict[int, GenerationResult] = {}
    free = trio.Semaphore(streams)

    async def ask(number: int, params: dict[str, Any]) -> None:
        async with free:
            answers[number] = await client.call("generate", {"model": model, **params})

    with trio.fail_after(limit_s * len(all_params)):
        async with trio.open_nursery() as nursery:
            for number, params in enumerate(all_params):
                nursery.start_soon(ask, number, params)
    return [answers[number] for number in range(len(all_params))]
