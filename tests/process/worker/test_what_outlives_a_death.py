"""kill -9 in the middle of answers by a schema, with logprobs, by an adapter and of a tool call: the client can't tell."""

import os
import shutil
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
import trio

from mlxsup.config.locations import locate
from mlxsup.config.schema import DEFAULT_MODEL
from mlxsup.protocol.client.aio import Client, connect
from mlxsup.protocol.generation import GenerationResult
from mlxsup.supervisor.models.pull import pull
from tests.mlx.outputs.tokenizers import HERMES
from tests.process.worker.conftest import StartSupervisor

MODEL = "calling"
LIMIT_S = 240.0
_PLAN = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 40},
        "steps": {
            "type": "array",
            "items": {"type": "string", "maxLength": 30},
            "minItems": 6,
            "maxItems": 8,
        },
    },
    "required": ["title", "steps"],
    "additionalProperties": False,
}
_QUESTION = [{"role": "user", "content": "How do I make tea? Plan it."}]
_TOOL = {"type": "function", "function": {"name": "save_plan", "parameters": _PLAN}}
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "schema": (
        "chat",
        {
            "messages": _QUESTION,
            "temperature": 0.8,
            "seed": 4,
            "response_format": {"type": "json_schema", "json_schema": {"name": "plan", "schema": _PLAN}},
        },
    ),
    "logprobs": (
        "generate",
        {"prompt": "Once upon a time", "max_tokens": 80, "temperature": 0, "logprobs": 2},
    ),
    "adapter": (
        "generate",
        {"prompt": "Once upon a time", "max_tokens": 80, "temperature": 0, "adapter": "tilted"},
    ),
    "tool": (
        "chat",
        {"messages": _QUESTION, "temperature": 0.8, "seed": 5, "tools": [_TOOL], "tool_choice": "required"},
    ),
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The default model with a template that tells of tools, and an adapter that changes what it says."""
    cache = locate(sys.platform, os.environ, Path.home()).cache

    async def fetch() -> Path:
        return (await pull(DEFAULT_MODEL, store_root=cache, on_progress=lambda _: None)).path

    folder = tmp_path_factory.mktemp("models") / MODEL
    shutil.copytree(trio.run(fetch), folder)
    (folder / "chat_template.jinja").write_text(HERMES)
    adapter = tmp_path_factory.mktemp("adapters")
    mx.random.seed(1)
    name = "model.layers.0.self_attn.q_proj"
    deltas = {f"{name}.lora_a": mx.random.normal((576, 4)), f"{name}.lora_b": mx.random.normal((4, 576))}
    mx.save_safetensors(str(adapter / "adapters.safetensors"), deltas)
    (adapter / "adapter_config.json").write_text('{"lora_parameters": {"scale": 1.0}}')
    return f'[models.{MODEL}]\nsource = "{folder}"\nadapters = {{ tilted = "{adapter}" }}\n'


def told(result: GenerationResult) -> dict[str, Any]:
    """All but times and who served it."""
    return {
        "text": result.text,
        "finish": result.finish_reason,
        "calls": result.tool_calls,
        "chosen": [entry.token for entry in result.logprobs or []],
        "tokens": result.usage.completion_tokens,
    }


def chances(result: GenerationResult) -> list[float]:
    """Rounding may put two that are as likely in either order."""
    return [chance.logprob for entry in result.logprobs or [] for chance in (entry, *entry.top)]


async def test_each_goes_on_in_the_next_worker_as_if_nothing_had_happened(
    start_supervisor: StartSupervisor, tables: str
) -> None:
    supervisor = await trio.to_thread.run_sync(partial(start_supervisor, toml=tables))
    texts: dict[str, str] = {}
    results: dict[str, GenerationResult] = {}

    async def ask(client: Client, name: str, began: trio.Event) -> None:
        method, params = REQUESTS[name]
        pieces = []
        async with client.stream(method, {"model": MODEL, **params}) as stream:
            async for piece in stream:
                pieces.append(piece)
                began.set()
        assert stream.result is not None
        texts[name], results[name] = "".join(pieces), stream.result

    with trio.fail_after(LIMIT_S):
        async with connect(supervisor.socket) as client:
            undisturbed: dict[str, GenerationResult] = {}
            for name in REQUESTS:
                await ask(client, name, trio.Event())
                undisturbed[name] = results[name]
            began = trio.Event()
            async with trio.open_nursery() as nursery:
                for name in REQUESTS:
                    nursery.start_soon(ask, client, name, began if name == "adapter" else trio.Event())
                await began.wait()
                (await trio.to_thread.run_sync(supervisor.serving)).send_signal(signal.SIGKILL)

    for name, result in results.items():
        assert result.worker is not None
        assert result.worker.resumed == 1, name
        assert told(result) == told(undisturbed[name]), name
        assert chances(result) == pytest.approx(chances(undisturbed[name]), abs=1e-3)
        assert texts[name] == result.text
    assert undisturbed["tool"].tool_calls
    assert undisturbed["adapter"].text != undisturbed["logprobs"].text
    assert len(undisturbed["logprobs"].logprobs or ()) == 80
