"""A client that is killed in the middle of a text, and another one that asks for the same again."""

import json
import signal
import subprocess
import sys
from typing import Any

import msgspec
import pytest
import trio

from mlxsup.protocol.client.sync import Client
from scripts.faulty_worker.answers import faulty_text
from scripts.faulty_worker.script import Fault, FaultKind, Script
from tests.process.recovery.conftest import StartStand
from tests.process.recovery.setting import LIMIT_S, ONE
from tests.process.recovery.stand import SOCKET, Stand

pytestmark = pytest.mark.slow

TOKENS = 200
SCRIPT = Script(seed=3, token_ms=10)
PARAMS: dict[str, Any] = {
    "model": ONE,
    "prompt": SCRIPT.prompt(),
    "max_tokens": TOKENS,
    "seed": SCRIPT.seed,
    "idempotency_key": "the question",
}
_CLIENT = """
import json, sys
from mlxsup.protocol.client.sync import Client
with Client.connect(sys.argv[1], timeout_s=float(sys.argv[2])) as client:
    for piece in client.stream("generate", json.loads(sys.argv[3])):
        print(json.dumps(piece), flush=True)
"""


def start_and_kill(stand: Stand, params: dict[str, Any]) -> str:
    """The pieces that a client got before it was killed."""
    arguments = [str(stand.folder / SOCKET), str(LIMIT_S), json.dumps(params)]
    with subprocess.Popen(
        [sys.executable, "-P", "-c", _CLIENT, *arguments], stdout=subprocess.PIPE
    ) as client:
        assert client.stdout is not None
        first = [client.stdout.readline() for _ in range(3)]
        client.kill()
        rest = client.stdout.read().splitlines()
    return "".join(json.loads(piece) for piece in [*first, *rest])


def test_another_client_gets_the_whole_text_of_one_that_was_killed_and_it_is_computed_once(
    start: StartStand,
) -> None:
    stand = start()
    before = start_and_kill(stand, PARAMS)
    whole = faulty_text(SCRIPT.seed, TOKENS)

    async def ask_again() -> None:
        with trio.fail_after(LIMIT_S):
            async with stand.client() as client, client.stream("generate", PARAMS) as stream:
                pieces = [piece async for piece in stream]
                stats = await client.call("server/stats")
        assert stream.result is not None
        assert "".join(pieces) == stream.result.text == whole
        assert (stats.overall.requests_total, stats.overall.ended) == (1, {"length": 1})
        assert stats.keyed.duplicates_total == 1

    trio.run(ask_again)
    assert 0 < len(before) < len(whole)
    assert whole.startswith(before)
    # Once more, when it is over: what was kept.
    with Client.connect(stand.folder / SOCKET, timeout_s=LIMIT_S) as client:
        assert client.call("generate", PARAMS).text == whole
    stand.end()


def test_a_text_that_lost_its_client_and_its_worker_goes_on_for_another_client(start: StartStand) -> None:
    fault = Fault(kind=FaultKind.SIGNAL, number=signal.SIGKILL, at_token=100, times=1)
    params = PARAMS | {"prompt": msgspec.structs.replace(SCRIPT, fault=fault).prompt()}
    stand = start()
    before = start_and_kill(stand, params)
    with Client.connect(stand.folder / SOCKET, timeout_s=LIMIT_S) as client:
        result = client.call("generate", params)
    assert result.text == faulty_text(SCRIPT.seed, TOKENS)
    assert result.text.startswith(before)
    assert result.worker.resumed == 1
    stand.end()
