"""Those who ask a stand for texts, and watch what it does."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import trio

from mlxsup.protocol.client.aio import Client
from mlxsup.protocol.client.exchange import Notification
from mlxsup.protocol.errors import RpcError
from mlxsup.protocol.generation import GenerationResult, ServedBy
from mlxsup.protocol.service import Event, ModelEntry
from scripts.faulty_worker.answers import faulty_text
from scripts.faulty_worker.script import Script
from tests.process.recovery.setting import LIMIT_S, ONE, OTHER

_BESIDE_SEED = 5

Told = Callable[[Event], bool]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """`arrived_s` has a moment of the monotonic clock for each piece."""

    text: str
    result: GenerationResult
    arrived_s: list[float]


class Watch:
    """The events of a supervisor as they come, each with its moment on the monotonic clock."""

    def __init__(self) -> None:
        self.events: list[tuple[float, Event]] = []
        self._changed = trio.Event()

    def take(self, notification: Notification) -> None:
        if isinstance(notification, Event):
            self.events.append((time.monotonic(), notification))
            self._changed.set()
            self._changed = trio.Event()

    async def until(self, told: Told, *, count: int = 1) -> Event:
        """The `count`-th event, of all that came and come, of which `told` is true."""
        with trio.fail_after(LIMIT_S):
            while len(found := [event for _, event in self.events if told(event)]) < count:
                await self._changed.wait()
        return found[count - 1]

    def of(self, topic: str, model: str = ONE) -> list[Event]:
        return [event for _, event in self.events if event.topic == topic and event.model == model]

    def moments(self, told: Told) -> list[float]:
        return [at_s for at_s, event in self.events if told(event)]


def state(name: str, model: str = ONE) -> Told:
    return lambda event: event.topic == "worker" and event.what == name and event.model == model


def death(model: str = ONE) -> Told:
    return lambda event: (
        event.topic == "death" and event.what != "request_quarantined" and event.model == model
    )


async def ask(client: Client, script: Script, tokens: int, *, model: str = ONE) -> Answer:
    """The whole of a streamed text. Raises RpcError."""
    pieces = []
    arrived_s = []
    params = {"model": model, "prompt": script.prompt(), "max_tokens": tokens, "seed": script.seed}
    with trio.fail_after(LIMIT_S):
        async with client.stream("generate", params) as stream:
            async for piece in stream:
                pieces.append(piece)
                arrived_s.append(time.monotonic())
    assert stream.result is not None
    return Answer(text="".join(pieces), result=stream.result, arrived_s=arrived_s)


async def ask_all(client: Client, scripts: Sequence[Script], tokens: int) -> list[Answer | RpcError]:
    """All of them at once, in their order."""
    answers: dict[int, Answer | RpcError] = {}

    async def ask_one(index: int, script: Script) -> None:
        try:
            answers[index] = await ask(client, script, tokens)
        except RpcError as error:
            answers[index] = error

    async with trio.open_nursery() as nursery:
        for index, script in enumerate(scripts):
            nursery.start_soon(ask_one, index, script)
    return [answers[index] for index in range(len(scripts))]


class Beside:
    """A text of the other model, made while something happens to the first; complete once its block has ended."""

    def __init__(self) -> None:
        self.text = ""
        self.tokens = 0
        self.workers: list[ServedBy | None] = []
        self.entries: list[ModelEntry] = []

    def assert_undisturbed(self) -> None:
        assert self.text == faulty_text(_BESIDE_SEED, self.tokens) != ""
        assert self.workers == [ServedBy(generation=1)]
        assert len({(entry.pid, entry.generation, entry.state) for entry in self.entries}) == 1


@asynccontextmanager
async def beside(client: Client) -> AsyncIterator[Beside]:
    seen = Beside()
    async with client.stream("generate", endless(OTHER, Script(seed=_BESIDE_SEED, token_ms=2))) as stream:
        seen.text += await anext(stream)
        seen.entries.append(await entry(client, OTHER))
        yield seen
        seen.entries.append(await entry(client, OTHER))
        stream.cancel()
        async for piece in stream:
            seen.text += piece
    assert stream.result is not None
    seen.tokens = stream.result.usage.completion_tokens
    seen.workers.append(stream.result.worker)


def endless(model: str, script: Script) -> dict[str, Any]:
    """Parameters of a text that somebody has to cancel."""
    return {"model": model, "prompt": script.prompt(), "max_tokens": 1_000_000, "seed": script.seed}


async def entry(client: Client, model: str = ONE) -> ModelEntry:
    listed = await client.call("model/list")
    (found,) = (entry for entry in listed.models if entry.name == model)
    assert isinstance(found, ModelEntry)
    return found
