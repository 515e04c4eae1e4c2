"""What a model says does not depend on how it is served."""

import os
import signal
from typing import Any

import pytest
import trio

from mlxsup.protocol.client import aio
from mlxsup.protocol.client.exchange import Notification
from mlxsup.protocol.generation import GenerationResult
from mlxsup.protocol.service import Event
from tests.mlx.serving.conftest import MODEL, WAIT_S, Serving

QUESTIONS = (
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "Explain photosynthesis to a child in two sentences.",
    "List three prime numbers and say why they are prime.",
    "Translate 'good morning' into Spanish, German and Italian.",
    "Tell me a story that begins with a locked door.",
    "What is 12 times 12? Show your work step by step please.",
    "Name the planets.",
)
TOKENS = 20


def chat(question: str, **params: Any) -> dict[str, Any]:
    return {
        "method": "chat",
        "messages": [{"role": "user", "content": question}],
        "max_tokens": TOKENS,
        **params,
    }


@pytest.fixture(scope="module")
def reference_texts(serving: Serving) -> list[str]:
    prompts = [[{"role": "user", "content": question}] for question in QUESTIONS]
    return serving.reference(prompts, TOKENS, streams=1)


def test_greedy_text_at_1_stream_is_mlx_lms_own(serving: Serving, reference_texts: list[str]) -> None:
    texts = [serving.ask_together([chat(question, temperature=0)])[0].text for question in QUESTIONS]

    assert texts == reference_texts


def test_greedy_text_at_8_streams_is_mlx_lms_own(serving: Serving, reference_texts: list[str]) -> None:
    prompts = [[{"role": "user", "content": question}] for question in QUESTIONS]
    results = serving.ask_together([chat(question, temperature=0) for question in QUESTIONS])

    assert [result.text for result in results] == serving.reference(prompts, TOKENS, streams=8)
    assert [result.text for result in results] == reference_texts


def test_seeded_text_is_the_same_alone_in_a_batch_of_16_and_after_a_restart(serving: Serving) -> None:
    seeded = chat("Tell me a story.", temperature=1.2, top_p=0.95, top_k=500, min_p=0.001, seed=42)
    others = [chat(f"{QUESTIONS[n % 8]} ({n})", temperature=0.3 * (n % 4)) for n in range(15)]

    alone = serving.ask_together([seeded])[0]
    batched = serving.ask_together([*others[:7], seeded, *others[7:]])[7]
    kill_worker(serving)
    restarted = serving.ask_together([seeded])[0]
    other_seed = serving.ask_together([{**seeded, "seed": 43}])[0]

    assert batched.text == alone.text
    assert restarted.text == alone.text
    assert restarted.worker is not None
    assert alone.worker is not None
    assert restarted.worker.generation == alone.worker.generation + 1
    assert other_seed.text != alone.text


def kill_worker(serving: Serving) -> None:
    """Returns once the next one serves."""
    states: list[str] = []
    ready_again = trio.Event()

    def note(notification: Notification) -> None:
        if isinstance(notification, Event):
            states.append(notification.what)
            if notification.what == "ready":
                ready_again.set()

    async def run() -> None:
        async with aio.connect(serving.socket) as client:
            client.listen(note)
            await client.call("server/subscribe", {"topics": ["worker"]})
            (entry,) = (await client.call("model/list")).models
            os.kill(entry.pid, signal.SIGKILL)
            with trio.fail_after(WAIT_S):
                await ready_again.wait()

    trio.run(run)
    assert "backoff" in states


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 1.2, "top_p": 0.95, "seed": 7}])
def test_eight_streams_whose_worker_is_killed_end_with_their_undisturbed_texts(
    serving: Serving, sampling: dict[str, Any]
) -> None:
    calls = [chat(question, **{**sampling, "max_tokens": 2 * TOKENS}) for question in QUESTIONS]
    undisturbed = serving.ask_together(calls)
    results: dict[int, GenerationResult] = {}
    streamed = [""] * len(calls)
    all_speak = trio.Event()

    async def follow(client: aio.Client, number: int, call: dict[str, Any]) -> None:
        params = {"model": MODEL, **call}
        async with client.stream(params.pop("method"), params) as pieces:
            async for piece in pieces:
                streamed[number] += piece
                if all(streamed):
                    all_speak.set()
        assert pieces.result is not None
        results[number] = pieces.result

    async def run() -> None:
        with trio.fail_after(WAIT_S):
            async with aio.connect(serving.socket) as client, trio.open_nursery() as nursery:
                for number, call in enumerate(calls):
                    nursery.start_soon(follow, client, number, call)
                await all_speak.wait()
                (entry,) = (await client.call("model/list")).models
                os.kill(entry.pid, signal.SIGKILL)

    trio.run(run)
    texts = [results[number].text for number in range(len(calls))]
    assert texts == streamed == [result.text for result in undisturbed]
    resumed = [result.worker.resumed for _, result in sorted(results.items()) if result.worker]
    # One that has ended before all had begun needs no other worker.
    assert set(resumed) <= {0, 1}
    assert sum(resumed) >= 2


def test_streamed_pieces_are_the_text_and_never_split_a_character(serving: Serving) -> None:
    with serving.connect() as client:
        prompt = "👩‍👩‍👧 日本語のテスト: こんにちは、世界。👍🏽 emoji: 😀😃😄"
        params = {"model": "smollm2-135m", "prompt": prompt, "max_tokens": 40, "temperature": 1.5, "seed": 3}
        stream = client.stream("generate", params)
        pieces = list(stream)

    assert stream.result is not None
    assert "".join(pieces) == stream.result.text
    assert stream.result.usage.completion_tokens == 40
    assert not any(piece.endswith("\ufffd") for piece in pieces[:-1])
