"""`mlxsup selftest` with the real model, while it answers."""

import subprocess
import sys
import threading
from typing import Any

import msgspec

from mlxsup.protocol.generation import GenerationResult
from mlxsup.protocol.self_test import SelfTestResult
from tests.mlx.serving.conftest import MODEL, WAIT_S, Serving

CALLS: list[dict[str, Any]] = [
    {"method": "generate", "prompt": prompt, "max_tokens": 24, "temperature": 0}
    for prompt in ("Once upon a time", "The capital of France is", "One, two, three, four, five, six,")
]


def run_self_test(serving: Serving) -> tuple[int, SelfTestResult]:
    command = [sys.executable, "-P", "-m", "mlxsup.supervisor", "selftest", MODEL, "--json"]
    done = subprocess.run(
        [*command, "--socket", str(serving.socket)], stdout=subprocess.PIPE, timeout=WAIT_S, check=False
    )
    return done.returncode, msgspec.json.decode(done.stdout, type=SelfTestResult)


def test_the_default_model_passes_and_who_is_answered_meanwhile_has_the_same_text(serving: Serving) -> None:
    before = [result.text for result in serving.ask_together(CALLS)]
    answers: list[GenerationResult] = []
    asking = threading.Thread(target=lambda: answers.extend(serving.ask_together(CALLS)))
    asking.start()
    status, result = run_self_test(serving)
    asking.join(WAIT_S)

    assert status == 0
    assert {check.feature: check.outcome for check in result.checks} == dict.fromkeys(
        ("model", "batch", "prefix_cache", "speculation"), "ok"
    )
    assert [answer.text for answer in answers] == before
    with serving.connect() as client:
        health = client.call("server/health").models[MODEL]
    assert (health.switched_off, health.self_test) == ([], result)
