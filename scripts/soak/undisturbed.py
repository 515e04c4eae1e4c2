"""The texts that a real model gives where nothing dies."""

from typing import Any

import trio

from mlxsup.protocol.client.aio import Client
from mlxsup.protocol.generation import GenerationResult
from scripts.soak.orders import Order


async def undisturbed(
    client: Client, model: str, all_params: list[dict[str, Any]], streams: int, limit_s: float
) -> tuple[list[Order], int]:
    """Each text is computed twice, in different company; and how many were left out since the two differ."""
    first = await _answers(client, model, all_params, streams, limit_s)
    second = await _answers(client, model, all_params[::-1], streams, limit_s)
    orders = [
        Order(params, one.text, one.usage.completion_tokens)
        for params, one, other in zip(all_params, first, second[::-1], strict=True)
        if one.text == other.text
    ]
    return orders, len(all_params) - len(orders)


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
