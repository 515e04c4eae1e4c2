"""Reasoning, tool calls and logprobs outlive workers and clients as text does: all of them, once, and in their order."""

import signal
from typing import Any

import msgspec
import pytest
import trio

from mlxsup.protocol.client.aio import Client, TextStream
from mlxsup.protocol.generation import GenerationResult, StreamDelta
from scripts.faulty_worker.answers import Said, faulty_answer, faulty_logprobs, faulty_tokens
from scripts.faulty_worker.script import Fault, FaultKind, Script
from tests.process.recovery.conftest import StartStand
from tests.process.recovery.setting import LIMIT_S, ONE

pytestmark = pytest.mark.slow

TOKENS = 60
TOP = 2
SCRIPT = Script(seed=3, reasoning_tokens=20, call_every_tokens=6)


class Heard(msgspec.Struct, frozen=True):
    """Of one stream: all of it, and its result."""

    deltas: list[StreamDelta]
    result: GenerationResult

    def check(self, script: Script, *, has_logprobs: bool = True) -> None:
        whole = faulty_answer(script, TOKENS)
        logprobs = faulty_logprobs(script.seed, TOKENS, TOP) if has_logprobs else []
        tokens = faulty_tokens(script.seed, TOKENS) if has_logprobs else []
        assert said_in(self.deltas) == whole
        assert [entry for delta in self.deltas for entry in delta.logprobs] == logprobs
        assert [token for delta in self.deltas for token in delta.tokens] == tokens
        result = self.result
        assert Said(result.text, result.reasoning or "", result.tool_calls or []) == whole
        assert result.logprobs == (logprobs if has_logprobs else None)
        assert result.usage.completion_tokens == TOKENS


def said_in(deltas: list[StreamDelta]) -> Said:
    return Said(
        "".join(delta.text for delta in deltas),
        "".join(delta.reasoning for delta in deltas),
        [call for delta in deltas for call in delta.tool_calls],
    )


def params(script: Script, **more: Any) -> dict[str, Any]:
    prompt = {"model": ONE, "prompt": script.prompt(), "max_tokens": TOKENS, "seed": script.seed}
    return {**prompt, "logprobs": TOP, **more}


async def hear(client: Client, asked: dict[str, Any]) -> Heard:
    with trio.fail_after(LIMIT_S):
        async with client.stream("generate", asked) as stream:
            deltas = await rest_of(stream)
    assert stream.result is not None
    return Heard(deltas, stream.result)


async def rest_of(stream: TextStream) -> list[StreamDelta]:
    deltas = []
    while (delta := await stream.next_delta()) is not None:
        deltas.append(delta)
    return deltas


# In the middle of reasoning, where it ends, behind a token that holds something back, before a call and behind it, and at the end.
@pytest.mark.parametrize("at_token", [7, 20, 21, 23, 24, 59])
async def test_an_answer_whose_worker_is_killed_goes_on_with_all_that_it_has_beside_text(
    start: StartStand, at_token: int
) -> None:
    fault = Fault(kind=FaultKind.SIGNAL, number=signal.SIGKILL, at_token=at_token, times=1)
    struck = msgspec.structs.replace(SCRIPT, fault=fault)
    beside = msgspec.structs.replace(SCRIPT, seed=4)
    stand = start()
    heard: dict[int, Heard] = {}

    async def ask(client: Client, script: Script, **more: Any) -> None:
        heard[script.seed] = await hear(client, params(script, **more))

    async with stand.client() as client, trio.open_nursery() as nursery:
        nursery.start_soon(ask, client, struck)
        nursery.start_soon(lambda: ask(client, beside, logprobs=None))

    stand.end()
    heard[3].check(struck)
    heard[4].check(beside, has_logprobs=False)
    assert heard[3].result.worker is not None
    assert heard[3].result.worker.resumed == 1


async def test_who_asks_again_gets_all_so_far_and_later_what_was_kept(start: StartStand) -> None:
    fault = Fault(kind=FaultKind.SIGNAL, number=signal.SIGKILL, at_token=40, times=1)
    script = msgspec.structs.replace(SCRIPT, token_ms=5, fault=fault)
    asked = params(script, idempotency_key="the question")
    stand = start()
    with trio.fail_after(LIMIT_S):
        async with stand.client() as leaving, leaving.stream("generate", asked) as stream:
            heard = [await stream.next_delta()]
            while not any(delta is not None and delta.tool_calls for delta in heard):
                heard.append(await stream.next_delta())
            async with stand.client() as client:
                joined = await hear(client, asked)
                kept = await hear(client, asked)
            left = await rest_of(stream)
            stats = await leaving.call("server/stats")
    stand.end()
    joined.check(script)
    kept.check(script)
    # All of it at once.
    assert len(kept.deltas) == 1
    assert said_in([delta for delta in heard if delta is not None] + left) == faulty_answer(script, TOKENS)
    assert stats.overall.requests_total == 1
    assert stats.keyed.duplicates_total == 2


async def test_an_answer_that_is_cancelled_has_what_was_said_by_then(start: StartStand) -> None:
    script = msgspec.structs.replace(SCRIPT, token_ms=5)
    stand = start()
    with trio.fail_after(LIMIT_S):
        async with (
            stand.client() as client,
            client.stream("generate", params(script, max_tokens=50_000)) as stream,
        ):
            deltas = [await stream.next_delta()]
            while not any(delta is not None and delta.tool_calls for delta in deltas):
                deltas.append(await stream.next_delta())
            stream.cancel()
            heard = [delta for delta in deltas if delta is not None] + await rest_of(stream)
    stand.end()
    result = stream.result
    assert result is not None
    tokens = result.usage.completion_tokens
    assert 20 < tokens < 50_000
    assert result.finish_reason == "cancelled"
    assert said_in(heard) == faulty_answer(script, tokens)
    assert Said(result.text, result.reasoning or "", result.tool_calls or []) == said_in(heard)
    assert result.logprobs == faulty_logprobs(script.seed, tokens, TOP)
