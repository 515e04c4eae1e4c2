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
# Company and a replay change the last bits of what the model computes, on MLX's CPU backend the log probabilities by less
# than 0.0001. Where a token is decided by as little, either text is right, and no comparison says anything. So questions
# and seeds are chosen: with noise of this size, drawn 20 times for each token, no token of a text here was another one.
NOISE = 1e-3
SEEDS = (7, 7, 10, 9, 25, 11, 8, 7)


def chat(question: str, **params: Any) -> dict[str, Any]:
    return {
        "method": "chat",
        "messages": [{"role": "user", "content": question}],
        "max_tokens": TOKENS,
        **params,
    }


GREEDY = [chat(question, temperature=0, max_tokens=2 * TOKENS) for question in QUESTIONS]
SEEDED = [
    chat(question, temperature=1.2, top_p=0.95, seed=seed, max_tokens=2 * TOKENS)
    for question, seed in zip(QUESTIONS, SEEDS, strict=True)
]
STORY = chat("Tell me a story.", temperature=1.2, top_p=0.95, top_k=500, min_p=0.001, seed=43)


@pytest.fixture(scope="module")
def reference_texts(serving: Serving) -> list[str]:
    prompts = [[{"role": "user", "content": question}] for question in QUESTIONS]
    return serving.reference(prompts, TOKENS, streams=1)


@pytest.fixture(scope="module")
def seeded_texts(serving: Serving) -> list[str]:
    return [result.text for result in serving.ask_together(SEEDED)]


def test_rounding_decides_none_of_the_seeded_texts(serving: Serving, seeded_texts: list[str]) -> None:
    assert serving.noisy_texts(SEEDED, NOISE) == seeded_texts


def test_greedy_text_at_1_stream_is_mlx_lms_own(serving: Serving, reference_texts: list[str]) -> None:
    texts = [serving.ask_together([chat(question, temperature=0)])[0].text for question in QUESTIONS]

    assert texts == reference_texts


def test_greedy_text_at_8_streams_is_mlx_lms_own(serving: Serving, reference_texts: list[str]) -> None:
    prompts = [[{"role": "user", "content": question}] for question in QUESTIONS]
    results = serving.ask_together([chat(question, temperature=0) for question in QUESTIONS])

    assert [result.text for result in results] == serving.reference(prompts, TOKENS, streams=8)
    assert [result.text for result in results] == reference_texts


def test_seeded_text_is_the_same_alone_in_a_batch_of_16_and_after_a_restart(serving: Serving) -> None:
    others = [chat(f"{QUESTIONS[n % 8]} ({n})", temperature=0.3 * (n % 4)) for n in range(15)]

    alone = serving.ask_together([STORY])[0]
    batched = serving.ask_together([*others[:7], STORY, *others[7:]])[7]
    kill_worker(serving)
    restarted = serving.ask_together([STORY])[0]
    other_seed = serving.ask_together([{**STORY, "seed": 42}])[0]

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


def test_eight_greedy_streams_whose_worker_is_killed_end_with_their_undisturbed_texts(
    serving: Serving,
) -> None:
    undisturbed = [result.text for result in serving.ask_together(GREEDY)]

    assert texts_around_a_kill(serving, GREEDY) == undisturbed


def test_eight_seeded_streams_whose_worker_is_killed_end_with_their_undisturbed_texts(
    serving: Serving, seeded_texts: list[str]
) -> None:
    assert texts_around_a_kill(serving, SEEDED) == seeded_texts


def texts_around_a_kill(serving: Serving, calls: list[dict[str, Any]]) -> list[str]:
    """Streamed all at once, and the worker is killed when each has begun."""
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
    assert texts == streamed
    resumed = [result.worker.resumed for _, result in sorted(results.items()) if result.worker]
    # One that has ended before all had begun needs no other worker.
    assert set(resumed) <= {0, 1}
    assert sum(resumed) >= 2
    return texts


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
