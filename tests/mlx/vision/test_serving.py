"""A whole supervisor with a model that sees: answers, and refusals that no worker dies of."""

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import trio

pytest.importorskip("mlx_vlm", reason="mlx-vlm comes with mlxsup[vision]")


from mlxsup.protocol.client import aio
from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import GenerationResult
from mlxsup.protocol.service import EmbedResult, ModelEntry
from tests.mlx.serving.conftest import WAIT_S, Serving, running
from tests.mlx.vision.folders import make_llava
from tests.mlx.vision.pictures import as_uri, draw
from tests.unit.vision.bombs import BOMBS, uri

pytestmark = pytest.mark.slow

MODEL = "seeing"


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = make_llava(tmp_path_factory.mktemp("llava"))
    config = f"[worker]\nblas_threads = 1\n[models.{MODEL}]\nsource = {json.dumps(str(folder))}\n"
    with running(config, tmp_path_factory.mktemp("serving"), folder) as serving:
        yield serving


def chat(*parts: str | dict[str, Any], **params: Any) -> dict[str, Any]:
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": 12,
        **params,
    }


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def picture(seed: int, kind: str = "PNG") -> dict[str, Any]:
    return image(as_uri(draw(seed), kind))


def ask(serving: Serving, params: dict[str, Any]) -> GenerationResult:
    result: GenerationResult = serving.ask("chat", **params)
    return result


def pid(serving: Serving) -> int:
    with serving.connect() as client:
        return _pid(client.call("model/list").models)


def _pid(models: list[ModelEntry]) -> int:
    (found,) = [model.pid for model in models if model.name == MODEL]
    assert found is not None
    return found


def test_it_answers_by_what_it_sees(serving: Serving) -> None:
    texts = [
        ask(serving, chat(*parts, "What is it?")).text
        for parts in [(picture(1),), (picture(2),), (picture(1), picture(2)), ()]
    ]

    assert len(set(texts)) == 4
    assert ask(serving, chat(picture(1), "What is it?")).text == texts[0]
    assert ask(serving, chat(picture(1, "WEBP"), "What is it?", max_tokens=1)).usage.completion_tokens == 1


@pytest.mark.parametrize(
    ("parts", "kind", "path"),
    [
        ([image(uri(BOMBS["png"]()))], ErrorKind.LIMIT_EXCEEDED, "$.messages[0].content[0]"),
        ([image(uri(BOMBS["webp"]()))], ErrorKind.LIMIT_EXCEEDED, "$.messages[0].content[0]"),
        ([image(uri(BOMBS["gif"]()))], ErrorKind.LIMIT_EXCEEDED, "$.messages[0].content[0]"),
        (["a", image(uri(b"no picture, but a text"))], ErrorKind.INVALID_PARAMS, "$.messages[0].content[1]"),
        ([image(as_uri(draw(1))[:-40])], ErrorKind.INVALID_PARAMS, "$.messages[0].content[0]"),
        ([picture(1)] * 9, ErrorKind.LIMIT_EXCEEDED, "$.messages[0].content[8]"),
        ([image("https://example.org/a.png")], ErrorKind.UNSUPPORTED, "$.messages[0].content[0]"),
    ],
    ids=["png bomb", "webp bomb", "gif bomb", "a text", "truncated", "a ninth", "a URL"],
)
def test_a_bad_image_is_refused_by_its_place_and_the_worker_lives(
    serving: Serving, parts: list[Any], kind: ErrorKind, path: str
) -> None:
    before = pid(serving) if ask(serving, chat("hi", max_tokens=1)) else 0
    with pytest.raises(RpcError) as raised:
        ask(serving, chat(*parts))

    assert raised.value.kind is kind
    assert raised.value.data.path == path
    assert ask(serving, chat(picture(1), "x", max_tokens=2)).usage.completion_tokens == 2
    assert pid(serving) == before


def test_streams_with_pictures_and_without_are_what_each_is_alone(serving: Serving) -> None:
    calls = [chat(picture(seed), "What is it?", max_tokens=20) for seed in range(1, 5)] + [chat("Hello")]
    alone = [ask(serving, params).text for params in calls]
    together = serving.ask_together([{"method": "chat", **params} for params in calls])

    assert [result.text for result in together] == alone


def test_a_worker_that_is_killed_in_the_middle_changes_no_text(serving: Serving) -> None:
    params = chat(picture(1), picture(3), "What are they?", max_tokens=60)
    whole = ask(serving, params).text
    texts: list[str] = []
    resumed: list[int] = []

    async def run() -> None:
        async with aio.connect(serving.socket) as client:
            with trio.fail_after(WAIT_S):
                async with client.stream("chat", params) as stream:
                    async for piece in stream:
                        if not texts:
                            os.kill(_pid((await client.call("model/list")).models), signal.SIGKILL)
                        texts.append(piece)
                assert stream.result is not None
                assert stream.result.worker is not None
                resumed.append(stream.result.worker.resumed)

    trio.run(run)

    assert "".join(texts) == whole
    assert resumed == [1]


def test_its_text_can_be_embedded(serving: Serving) -> None:
    result: EmbedResult = serving.ask("embed", model=MODEL, input=["a", "b"])

    assert len(result.embeddings) == 2
    assert result.embeddings[0] != result.embeddings[1]
