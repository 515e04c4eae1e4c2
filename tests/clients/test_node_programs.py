"""Node programs that know nothing of mlxsup: with a JSON-RPC library, with no library, and over a Unix socket."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import CLIENTS, PROGRAMS, Run

pytestmark = pytest.mark.slow


def test_a_program_without_any_package_prints_the_answer(node: str, model: str, run: Run) -> None:
    finished = run([node, str(PROGRAMS / "chat.mjs")])

    assert (finished.status, finished.stdout) == (0, "The capital of France is Paris.\n"), finished.stderr


def test_a_socket_that_ends_its_input_at_once_still_gets_the_answer(
    node: str, model: str, server: Path, run: Run
) -> None:
    finished = run([node, str(PROGRAMS / "unix_socket.mjs"), str(server)])

    (line,) = finished.stdout.splitlines()
    answer = json.loads(line)
    assert (answer["id"], answer["result"]["finish_reason"]) == ("over a socket", "stop")
    assert "Paris" in answer["result"]["text"]


@pytest.fixture(scope="module")
def seen(node: str, model: str, run: Run) -> dict[str, Any]:
    """What vscode-jsonrpc saw, in one run of its program. Its requests have the ids 0, 1, 2 and 3."""
    if not (CLIENTS / "node_modules").is_dir():
        if shutil.which("npm") is None:
            pytest.skip("no npm on this machine")
        pytest.fail("the npm packages are not installed: run scripts/setup")
    finished = run([node, str(PROGRAMS / "vscode_jsonrpc.mjs")])
    assert finished.status == 0, finished.stderr
    result: dict[str, Any] = json.loads(finished.stdout)
    return result


def test_vscode_jsonrpc_is_told_how_a_load_gets_on(seen: dict[str, Any]) -> None:
    assert {progress["token"] for progress in seen["progress"]} == {0}
    assert list(dict.fromkeys(progress["phase"] for progress in seen["progress"])) == [
        "weights",
        "tokenizer",
        "warm",
        "self-test",
    ]
    assert seen["loaded"]["state"] == "ready"


def test_vscode_jsonrpc_gets_the_deltas_and_then_the_response(seen: dict[str, Any]) -> None:
    deltas = seen["deltas"]["1"]

    assert len(deltas) > 1
    assert "".join(deltas) == seen["answer"]["text"]
    assert "Paris" in seen["answer"]["text"]


def test_a_cancellation_token_of_vscode_jsonrpc_ends_an_answer_with_the_text_so_far(
    seen: dict[str, Any],
) -> None:
    cancelled = seen["cancelled"]

    assert cancelled["finish_reason"] == "cancelled"
    assert "".join(seen["deltas"]["2"]) == cancelled["text"]
    assert 0 < cancelled["usage"]["completion_tokens"] < 4096


def test_vscode_jsonrpc_is_told_which_parameter_is_wrong(seen: dict[str, Any]) -> None:
    refused = seen["refused"]

    assert (refused["code"], refused["data"]["kind"]) == (-32602, "invalid_params")
    assert refused["data"]["path"]


def test_the_server_of_vscode_jsonrpc_ends_with_its_input(seen: dict[str, Any]) -> None:
    assert seen["status"] == 0
