"""The whole engine tells its model of tools, and takes their calls out of what it says."""

from typing import Any

import pytest

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import FinishReason, JsonObjectFormat, Message
from mlxsup.protocol.worker_link import Generate, Load, Sampling
from mlxsup.worker.engine.text import TextEngine
from tests.mlx.outputs.tokenizers import MARKERS, QWEN3, THINKING, make_folder

TOOL: dict[str, Any] = {"type": "function", "function": {"name": "f"}}
GREEDY = Sampling(
    temperature=0,
    top_p=1,
    top_k=0,
    min_p=0,
    repetition_penalty=1,
    presence_penalty=0,
    frequency_penalty=0,
    seed=0,
)
ANSWER = 'I look.<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'


def chat(**fields: Any) -> Generate:
    messages = [Message(role="user", content="hi")]
    return Generate(**{"max_tokens": 8, "sampling": GREEDY, "messages": messages, "tools": [TOOL], **fields})


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> TextEngine:
    folder = make_folder(tmp_path_factory.mktemp("model"), QWEN3, MARKERS + THINKING)
    order = Load(
        model_path=str(folder),
        context_tokens_max=None,
        batch_sequences_max=2,
        prefill_chunk_tokens=64,
        float32=None,
        wired_limit_bytes=0,
        cache_limit_bytes=None,
        heartbeat_interval_s=1,
    )
    return TextEngine.load(order, lambda *_: None)


def prompt_text(engine: TextEngine, request: Generate) -> str:
    return engine.detokenize(engine.prepare(request).prompt_tokens)


def test_the_prompt_tells_of_tools_unless_none_is_to_be_called(engine: TextEngine) -> None:
    assert '"name": "f"' in prompt_text(engine, chat())
    assert "<tools>" not in prompt_text(engine, chat(tool_choice="none"))


def test_where_a_format_binds_the_answer_the_prompt_lets_nothing_stand_before_it(engine: TextEngine) -> None:
    request = chat(format=JsonObjectFormat(), tools=[])

    assert prompt_text(engine, request).endswith("<think>\n\n</think>\n\n")
    assert prompt_text(engine, chat(tools=[])).endswith("assistant\n")


def test_a_choice_of_no_tool_is_refused_before_it_is_computed(engine: TextEngine) -> None:
    with pytest.raises(RpcError) as refused:
        engine.prepare(chat(tool_choice={"type": "function", "function": {"name": "g"}}))

    assert (refused.value.kind, refused.value.data.path) == (ErrorKind.INVALID_PARAMS, "$.tool_choice")


def test_calls_come_apart_from_the_text_of_the_answer(engine: TextEngine) -> None:
    tokens = engine.tokenize(ANSWER)
    request = chat(delivered_tokens=tokens, max_tokens=len(tokens))
    only = engine.submit(1, engine.prepare(request))

    assert only is not None
    assert (only.text, only.finish) == ("I look.", FinishReason.LENGTH)
    assert [(call.function.name, call.function.arguments) for call in only.tool_calls] == [("f", '{"a": 1}')]
