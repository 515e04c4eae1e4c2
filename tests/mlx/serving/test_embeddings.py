"""`embed` with the real model: what each text has alone, in whatever company, and no text cut."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
import trio
import trio.lowlevel

from mlxsup import native
from mlxsup.protocol.client import aio
from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import GenerationResult
from mlxsup.protocol.service import EmbedResult, Stats
from tests.mlx.serving.conftest import BLAS_THREADS, MODEL, PROGRAMS, WAIT_S, Serving

NEAR = 1e-5
TEXTS = [
    "A cat sleeps on the warm roof.",
    "The kitten is lying on the house top.",
    "The central bank raised its interest rate.",
    "x",
    "It was a long day, and nobody had seen the end of it coming. " * 8,
]
PROMPT = "Once upon a time"


def vectors(result: EmbedResult) -> npt.NDArray[np.float64]:
    return np.array(result.embeddings)


def reference(serving: Serving, texts: Sequence[str]) -> npt.NDArray[np.float64]:
    """The normalized means of the last hidden states, by mlx-lm alone, one text at a time."""
    done = subprocess.run(
        [sys.executable, "-P", str(PROGRAMS / "embeddings.py")],
        input=json.dumps({"model": str(serving.model_folder), "texts": texts}).encode(),
        env={**os.environ, **native.preload_environment(BLAS_THREADS)},
        stdout=subprocess.PIPE,
        timeout=WAIT_S,
        check=True,
    )
    return np.array(json.loads(done.stdout))


def test_each_is_the_mean_of_what_mlx_lm_sees_in_its_text(serving: Serving) -> None:
    with serving.connect() as client:
        result = client.embed(MODEL, TEXTS)
    found = vectors(result)

    assert found == pytest.approx(reference(serving, TEXTS), abs=NEAR)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1.0, abs=1e-6)
    likeness = found @ found.T
    assert likeness[0, 1] > likeness[0, 2]
    tokens = [len(serving.ask("tokenize", text=text).tokens) for text in TEXTS]
    assert result.usage.prompt_tokens == sum(tokens)


def test_company_changes_neither_vectors_nor_texts(serving: Serving) -> None:
    alone = serving.ask("embed", input=TEXTS)
    text = serving.ask("generate", prompt=PROMPT, max_tokens=24, temperature=0).text
    mixed: list[EmbedResult] = []
    texts: list[GenerationResult] = []

    async def run() -> None:
        async with aio.connect(serving.socket) as client, trio.open_nursery() as nursery:

            async def embed(priority: str) -> None:
                mixed.append(await client.embed(MODEL, TEXTS, priority=priority))

            async def generate() -> None:
                params = {"model": MODEL, "prompt": PROMPT, "max_tokens": 24, "temperature": 0}
                texts.append(await client.call("generate", params))

            for priority in ("interactive", "normal", "background"):
                nursery.start_soon(embed, priority)
                nursery.start_soon(generate)

    trio.run(run)

    for result in mixed:
        assert vectors(result) == pytest.approx(vectors(alone), abs=NEAR)
    assert [result.text for result in texts] == [text] * 3


def test_without_normalization_the_direction_is_the_same(serving: Serving) -> None:
    plain = vectors(serving.ask("embed", input=TEXTS[0], normalize=False))[0]

    assert np.linalg.norm(plain) > 1.5
    assert plain / np.linalg.norm(plain) == pytest.approx(
        vectors(serving.ask("embed", input=TEXTS[0]))[0], abs=NEAR
    )


@pytest.mark.parametrize(
    ("input", "path"), [(["a", "b", "word " * 9000], "$.input[2]"), ("word " * 9000, "$.input")]
)
def test_a_text_that_is_too_long_is_refused_by_its_place(
    serving: Serving, input: str | list[str], path: str
) -> None:
    with pytest.raises(RpcError) as raised:
        serving.ask("embed", input=input)

    assert raised.value.kind is ErrorKind.LIMIT_EXCEEDED
    assert raised.value.data.path == path
    assert path in raised.value.message


def test_a_text_without_tokens_is_refused_by_its_place(serving: Serving) -> None:
    with pytest.raises(RpcError) as raised:
        serving.ask("embed", input=["a", ""])

    assert raised.value.kind is ErrorKind.INVALID_PARAMS
    assert raised.value.data.path == "$.input[1]"


def test_a_worker_that_is_killed_in_the_middle_changes_nothing(serving: Serving) -> None:
    texts = [f"{number}: {TEXTS[-1]}" for number in range(8)]
    found: list[EmbedResult] = []

    async def run() -> None:
        async with aio.connect(serving.socket) as client:
            before: Stats = await client.call("server/stats")

            async def kill() -> None:
                """Once it is in a worker."""
                while True:
                    stats: Stats = await client.call("server/stats")
                    if stats.activity[MODEL].running["normal"]:
                        break
                    await trio.lowlevel.checkpoint()
                (model,) = (await client.call("model/list")).models
                os.kill(model.pid, signal.SIGKILL)

            async def embed() -> None:
                found.append(await client.embed(MODEL, texts))

            with trio.fail_after(WAIT_S):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(kill)
                    nursery.start_soon(embed)
            after: Stats = await client.call("server/stats")
            assert after.overall.requests_resumed == before.overall.requests_resumed + 1

    trio.run(run)

    alone = vectors(serving.ask("embed", input=[texts[0], texts[7]]))
    assert vectors(found[0])[[0, 7]] == pytest.approx(alone, abs=NEAR)
