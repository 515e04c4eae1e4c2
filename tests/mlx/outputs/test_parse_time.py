"""Whatever a model says between its markers, mlx-lm's parsers are soon done with it: nobody is given a token meanwhile."""

import importlib
import json
import time
from typing import Any

import pytest

from mlxsup.worker.engine.outputs.calls import CallReader
from mlxsup.worker.engine.outputs.split import CALL_CHARS_MAX

WRITE_FILE: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "write_file",
        "parameters": {"type": "object", "properties": {"path": {"type": "string"}}},
    },
}
# What these parsers would take from five seconds to two minutes for: a head, what is said again and again, and a tail.
TIRING = [
    ("gemma4", "call:f{", "call:a{", "}"),
    ("gemma4", "", "call:a{{}", ""),
    ("kimi_k3", '<|open|>call tool="f"<|sep|>', "<|open|>json", "<|close|>call<|sep|>"),
    ("kimi_k3", '<|open|>call tool="f"<|sep|>', "<|open|>argument", "<|close|>call<|sep|>"),
    ("kimi_k3", "", "<|open|>call", ""),
    ("muse_spark", "", "<atem:invoke ", ""),
    ("glm47", "", "<arg_key>a</arg_key><arg_value>", ""),
]
# A file as long as calls may be, and what stands around it.
LONG = {
    "gemma4": ('call:write_file{path:<|"|>a<|"|>,text:<|"|>', '<|"|>}'),
    "kimi_k3": (
        (
            '<|open|>call tool="write_file" index="0"<|sep|><|open|>argument key="path" type="string"<|sep|>a'
            '<|close|>argument<|sep|><|open|>argument key="text" type="string"<|sep|>'
        ),
        "<|close|>argument<|sep|><|close|>call<|sep|>",
    ),
    "muse_spark": (
        '<atem:invoke name="write_file"><atem:parameter name="path">a</atem:parameter><atem:parameter name="text">',
        "</atem:parameter></atem:invoke>",
    ),
    "glm47": (
        "write_file<arg_key>path</arg_key><arg_value>a</arg_value><arg_key>text</arg_key><arg_value>",
        "</arg_value>",
    ),
}
CPU_S_MAX = 4.0


def reader(name: str) -> CallReader:
    module = importlib.import_module(f"mlx_lm.tool_parsers.{name}")
    return CallReader(module.parse_tool_call, [WRITE_FILE], seed=0, prompt_tokens=[])


@pytest.mark.parametrize(("name", "head", "again", "tail"), TIRING)
@pytest.mark.parametrize("chars", [1 << 12, 1 << 13, 1 << 14, CALL_CHARS_MAX])
def test_what_is_tiring_to_read_is_soon_given_up(
    name: str, head: str, again: str, tail: str, chars: int
) -> None:
    body = head + again * ((chars - len(head) - len(tail)) // len(again)) + tail
    calls = reader(name)
    began_s = time.thread_time()

    assert calls.read(body) is None
    assert time.thread_time() - began_s < CPU_S_MAX


@pytest.mark.parametrize("name", LONG)
def test_a_long_file_is_still_an_argument(name: str) -> None:
    head, tail = LONG[name]
    line = "the <b>call</b> of\nthe {wild}"
    text = line * ((CALL_CHARS_MAX - len(head) - len(tail)) // len(line))
    (call,) = reader(name).read(head + text + tail) or []

    assert call.function.name == "write_file"
    assert json.loads(call.function.arguments) == {"path": "a", "text": text}
