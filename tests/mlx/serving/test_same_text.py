"""What a model says does not depend on how it is served."""

import signal
from typing import Any

import psutil
import pytest
import trio

from mlxsup.protocol.client import aio
from mlxsup.protocol.client.exchange import Notification
from mlxsup.protocol.service import Event
from tests.mlx.serving.conftest import WAIT_S, Serving

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
    """Returns once the supervisor knows."""
    stopped = trio.Event()

    def note(notification: Notification) -> None:
        if isinstance(notification, Event) and notification.what == "stopped":
            stopped.set()

    async def run() -> None:
        async with aio.connect(serving.socket) as client:
            client.listen(note)
            await client.call("server/subscribe", {"topics": ["worker"]})
            (worker,) = psutil.Process(serving.process.pid).children()
            worker.send_signal(signal.SIGKILL)
            with trio.fail_after(WAIT_S):
                await stopped.wait()

    trio.run(run)


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
