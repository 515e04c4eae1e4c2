"""The texts that a real model gives where nothing dies."""

from pathlib import Path
from typing import Any

import msgspec
import trio

from mlxsup.protocol.client.aio import Client, connect
from mlxsup.protocol.generation import GenerationResult
from scripts.benchmarks.supervisor_child import running_supervisor
from scripts.soak.orders import Order
from scripts.soak.setting import MODEL, Soak


class Watched(msgspec.Struct, frozen=True):
    """What a worker that watches its margins gave for `all_params`; `doubtful` are the seeds of what rounding decides."""

    all_params: list[dict[str, Any]]
    texts: list[str]
    doubtful: set[int]


class Undisturbed(msgspec.Struct, frozen=True):
    """`unstable` are params of texts that are left out: rounding decides them."""

    orders: list[Order]
    unstable: list[dict[str, Any]]


def watch(soak: Soak, folder: Path, model_folder: Path, all_params: list[dict[str, Any]]) -> Watched:
    """By a supervisor of its own, in `folder`."""
    orders, margins = folder / "orders", folder / "margins"
    orders.mkdir(parents=True)
    with running_supervisor(folder, soak.watching_tables(orders, margins, model_folder)) as child:
        answers = trio.run(_ask_all, child.socket, all_params, soak)
    return Watched(all_params, [answer.text for answer in answers], _seeds(margins))


def _seeds(found: Path) -> set[int]:
    return set(map(int, found.read_text(encoding="ascii").split())) if found.exists() else set()


async def _ask_all(socket: Path, all_params: list[dict[str, Any]], soak: Soak) -> list[GenerationResult]:
    async with connect(socket) as client:
        return await _answers(client, MODEL, all_params, soak.streams, soak.pace.limit_s)


async def undisturbed(client: Client, watched: Watched, streams: int, limit_s: float) -> Undisturbed:
    """The same by the supervisor that `client` is connected to, in another order."""
    answers = await _answers(client, MODEL, watched.all_params[::-1], streams, limit_s)
    orders, unstable = [], []
    for params, text, answer in zip(watched.all_params, watched.texts, answers[::-1], strict=True):
        if params["seed"] in watched.doubtful or text != answer.text:
            unstable.append(params)
        else:
            orders.append(Order(params, text, answer.usage.completion_tokens))
    return Undisturbed(orders, unstable)


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
