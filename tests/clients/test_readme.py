"""The programs of README.md, run as they stand there. The shell's is also the test of a client that is a pipe."""

import json
import re
import sys
from pathlib import Path

import pytest

from mlxsup.protocol.generation import ChatParams
from mlxsup.protocol.jsonrpc import Call, parse_calls
from mlxsup.protocol.methods import METHODS
from mlxsup.protocol.params import decode_params
from tests.clients.conftest import PROGRAMS, Run

ROOT = Path(__file__).parents[2]


def program(language: str) -> str:
    """The one program in this language."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert isinstance(block, str)
    return block


def test_the_node_program_is_the_one_that_is_tested() -> None:
    assert (PROGRAMS / "chat.mjs").read_text(encoding="utf-8") == program("js")


def test_the_request_that_is_shown_is_one() -> None:
    call = parse_calls(program("json").replace("\n", "").encode(), batch_calls_max=1)
    assert isinstance(call, Call)
    params = decode_params(call.params, METHODS[call.method].params)
    assert isinstance(params, ChatParams)
    assert params.priority is not None
    assert params.client is not None
    assert params.deadline_ms is not None
    assert params.idempotency_key is not None


@pytest.mark.slow
def test_a_line_from_printf_is_answered_with_one_line_and_status_0(model: str, run: Run) -> None:
    finished = run(["sh", "-c", program("sh")])

    assert finished.status == 0, finished.stderr
    (line,) = finished.stdout.splitlines()
    answer = json.loads(line)
    assert (answer["jsonrpc"], answer["id"]) == ("2.0", 1)
    assert "Paris" in answer["result"]["text"]


@pytest.mark.slow
def test_the_python_program_prints_the_answer(model: str, run: Run) -> None:
    finished = run([sys.executable, "-c", program("python")])

    assert (finished.status, finished.stdout) == (0, "The capital of France is Paris."), finished.stderr
